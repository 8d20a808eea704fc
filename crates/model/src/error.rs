//! Every error a caller can meet: a stable code, a public sentence, a hint, and what each surface makes of it.
//!
//! The one rule: `message` and `details` may be shown to anybody; what could hold a host path, a driver's words or
//! another tenant's business goes into `internal`, which only administrators and the log see.
//! Each code has a section in `docs/errors.md`; a test holds the two together.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($( $name:ident = $id:literal, $http:literal, $phala:expr, $hint:literal; )*) => {
        /// A stable error code. `HF-0xxx` is what we promise never to renumber.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $( $name, )* }

        impl Code {
            pub const ALL: &'static [Code] = &[ $( Code::$name, )* ];

            /// `HF-0101`
            pub fn id(self) -> &'static str {
                match self { $( Code::$name => $id, )* }
            }

            /// HTTP status on every surface.
            pub fn http(self) -> u16 {
                match self { $( Code::$name => $http, )* }
            }

            /// Code of the Phala error catalogue, where it has one.
            pub fn phala(self) -> Option<&'static str> {
                match self { $( Code::$name => $phala, )* }
            }

            /// What the caller can do about it.
            pub fn hint(self) -> &'static str {
                match self { $( Code::$name => $hint, )* }
            }

            pub fn from_id(id: &str) -> Option<Code> {
                Self::ALL.iter().copied().find(|c| c.id() == id)
            }
        }
    };
}

codes! {
    // Requests
    InvalidRequest    = "HF-0001", 422, None, "Correct the named fields and send the request again.";
    Unauthenticated   = "HF-0002", 401, None, "Send an API key as X-API-Key or as Authorization: Bearer.";
    RouteNotFound     = "HF-0003", 404, None, "See /openapi/phala.json, /openapi/nirvana.json and /openapi/holdfast.json for what is served.";
    MethodNotAllowed  = "HF-0004", 405, None, "Use one of the methods in the Allow header.";
    BodyTooLarge      = "HF-0005", 413, None, "Send a smaller body; the limit is in the message.";
    Internal          = "HF-0006", 500, None, "Ask the operator to look up the request id in the server's log.";
    Unavailable       = "HF-0007", 503, None, "Try again in a moment.";
    InvalidCursor     = "HF-0008", 400, None, "Start from the first page; a cursor is valid only for the filters it came with.";
    Forbidden         = "HF-0009", 403, Some("ERR-06-006"), "Use an API key of an administrator.";
    UnsupportedBody   = "HF-0010", 415, None, "Send the body as application/json.";
    RequestTimeout    = "HF-0011", 408, None, "Send the whole request within the time limit.";

    // CVMs
    CvmNotFound       = "HF-0101", 404, Some("ERR-03-001"), "List the CVMs of your workspace to see what there is.";
    NameAmbiguous     = "HF-0102", 409, Some("ERR-03-002"), "Name the CVM by its id or UUID.";
    IdAmbiguous       = "HF-0103", 409, Some("ERR-03-010"), "Name one of the app's CVMs by its id or UUID.";
    Busy              = "HF-0104", 409, None, "Wait for the running operation to finish, then try again.";
    NameTaken         = "HF-0105", 409, Some("ERR-01-004"), "Choose another name, or delete the CVM that has it.";
    WrongState        = "HF-0106", 409, None, "Look at the CVM's status; the message says which one this needs.";
    AppNotFound       = "HF-0107", 404, None, "List the apps of your workspace to see what there is.";
    OperationNotFound = "HF-0108", 404, None, "List the operations to see what there is.";
    WorkspaceNotFound = "HF-0109", 404, None, "See GET /api/v1/auth/me for your workspace.";
    AuditEntryNotFound = "HF-0117", 404, None, "List the audit log to see what there is.";

    // Deploying
    ComposeRequired   = "HF-0110", 400, Some("ERR-01-002"), "Send compose_file.docker_compose_file, or bash_script with runner \"bash\".";
    ComposeInvalid    = "HF-0111", 400, Some("ERR-01-003"), "Check the file with `docker compose config`.";
    ComposeTooLarge   = "HF-0112", 400, Some("ERR-01-003"), "Compose file and pre-launch script together may have 200 KiB.";
    NameInvalid       = "HF-0113", 422, None, "5 to 63 letters, digits and single dashes, beginning with a letter and not ending with a dash.";
    ProvisionMissing  = "HF-0114", 422, None, "Provision again: a provision is kept for 14 days.";
    AppConflict       = "HF-0115", 409, Some("ERR-03-007"), "The app runs with another configuration; update it instead, or provision a new app.";
    FeatureMissing    = "HF-0116", 400, Some("ERR-02-009"), "Leave the option out; the message says what this server can do.";

    ReplicaSourceNotFound = "HF-0144", 404, Some("ERR-03-008"), "List the app's CVMs to see what there is.";
    ReplicaImageMissing = "HF-0145", 400, Some("ERR-03-006"), "Choose a node that has the CVM's OS image, or update the CVM to one that is there.";
    ReplicaHashNeeded = "HF-0146", 409, Some("ERR-03-009"), "Name the compose_hash that the replica is to run, or wait for the update to be over.";

    // Changing
    DiskShrinks       = "HF-0118", 400, Some("ERR-02-008"), "Ask for a disk that is at least as large as the one there is.";
    RestartNeeded     = "HF-0119", 400, Some("ERR-02-008"), "Allow the restart, or stop the CVM first.";

    // People and workspaces
    UserNotFound      = "HF-0410", 404, None, "List the users with `holdfast admin users list`.";
    UserExists        = "HF-0411", 409, None, "Choose another username, or another address.";
    SlugTaken         = "HF-0412", 409, None, "Choose another slug; POST /api/v1/workspaces/check-slug says whether one is free.";
    MemberNotFound    = "HF-0413", 404, None, "List the members of the workspace to see who there is.";
    LastOwner         = "HF-0414", 400, None, "Make somebody else an owner first.";
    AlreadyMember     = "HF-0415", 409, None, "Nothing is left to do; an administrator of the workspace can change your role.";
    InvitationNotFound = "HF-0416", 404, None, "Check the code; an invitation of another workspace is not found either.";
    InvitationOver    = "HF-0417", 409, None, "Ask for a new invitation.";
    LocksOut          = "HF-0418", 409, None, "Let another administrator do it, with a key of another workspace.";

    // Projects
    ProjectNotFound   = "HF-0430", 404, None, "See GET /holdfast/v1/projects for the projects there are.";
    ProjectNameTaken  = "HF-0431", 409, None, "Choose another name; a project that was deleted has given its name back.";
    ProjectIsDefault  = "HF-0432", 409, None, "Keep it: whatever is deployed without naming a project goes there. Its name can be changed.";
    ProjectInUse      = "HF-0433", 409, None, "Delete the project's CVMs first; what became of them stays readable.";
    ProjectForbidden  = "HF-0434", 403, None, "Name a project that the key is made for in X-Holdfast-Project, or use another key.";
    ProjectLimited    = "HF-0435", 403, None, "Use a key that is not limited to projects.";
    ProjectMismatch   = "HF-0436", 409, None, "An app stays in its project: leave X-Holdfast-Project out, or deploy another app.";
    ProjectLimit      = "HF-0437", 409, None, "Delete a project that is not needed any more.";

    // Repeating and stopping
    NotCancellable    = "HF-0130", 409, None, "Wait for it to end; then make the change that you want.";
    NotRetryable      = "HF-0131", 409, None, "Ask for the change anew; the message says how.";
    IdempotencyMismatch = "HF-0132", 422, None, "Use a new key for a new request.";
    IdempotencyInvalid = "HF-0133", 400, None, "Send 1 to 255 visible ASCII characters as Idempotency-Key.";
    AlreadyCreated    = "HF-0134", 409, None, "Its secret was shown once and is kept nowhere: delete what was made and create another under a new key.";
    QueueFull         = "HF-0135", 409, None, "Wait until some of the operations that wait for the resource are over, or cancel one.";

    // Apps and KMS
    KmsMissing        = "HF-0140", 404, Some("ERR-02-011"), "See GET /api/v1/kms for what there is.";
    AppIdInvalid      = "HF-0141", 400, None, "Send 40 hex digits, with or without 0x before them.";
    RevisionNotFound  = "HF-0142", 404, None, "List the app's revisions to see what there is.";
    RangeInvalid      = "HF-0143", 400, None, "Ask for a shorter time, or for one that ends after it begins.";
    FamilyNotFound    = "HF-0147", 404, Some("ERR-02-001"), "See GET /api/v1/instance-types for the families there are.";

    // SSH keys
    SshKeyNotFound    = "HF-0150", 404, None, "See GET /api/v1/user/ssh-keys for the keys you have.";
    SshKeyInvalid     = "HF-0151", 422, None, "Send the one line of a .pub file, as ssh-keygen writes it.";
    SshKeyTaken       = "HF-0152", 400, None, "Nothing needs to be done: the key is put into your new CVMs.";
    SshKeyLimit       = "HF-0153", 400, None, "Delete a key that you do not use any more.";
    GithubUnreachable = "HF-0154", 400, None, "Try again later, or add the keys one by one with POST /api/v1/user/ssh-keys.";
    GithubUserNotFound = "HF-0155", 400, None, "Check how the username is spelt.";
    // Webhooks
    WebhookNotFound   = "HF-0170", 404, None, "See GET /api/v1/workspace/webhooks for what there is.";
    WebhookDeliveryNotFound = "HF-0171", 404, None, "See GET /api/v1/workspace/webhooks/{id}/deliveries for those that are kept.";
    WebhookLimit      = "HF-0172", 409, None, "Delete a webhook that is not needed, or let the operator raise the limit.";
    WebhookDisabled   = "HF-0173", 409, None, "Enable it first: PUT /api/v1/workspace/webhooks/{id} with enabled true.";

    // Placing
    TypeNotFound      = "HF-0120", 400, Some("ERR-02-001"), "See GET /api/v1/instance-types.";
    NoNode            = "HF-0121", 400, Some("ERR-02-002"), "Wait for a node to come ONLINE: `holdfast nodes list`.";
    NoVcpu            = "HF-0122", 400, Some("ERR-02-003"), "Ask for fewer vCPUs, or free some.";
    NoMemory          = "HF-0123", 400, Some("ERR-02-004"), "Ask for less memory, or free some.";
    NoSlot            = "HF-0124", 400, Some("ERR-02-005"), "Delete a CVM, or add a node.";
    NoDisk            = "HF-0125", 400, Some("ERR-02-002"), "Ask for a smaller disk, or free some.";
    ImageNotFound     = "HF-0126", 400, Some("ERR-02-010"), "See GET /api/v1/os-images; the operator makes one with `holdfast image build`.";
    KmsNotFound       = "HF-0127", 400, Some("ERR-02-011"), "Leave the KMS out: this server has one of its own.";
    NodeNotFound      = "HF-0128", 400, Some("ERR-01-001"), "See GET /api/v1/teepods/available.";
    NoPort            = "HF-0129", 400, Some("ERR-02-002"), "Publish fewer ports, or let the operator widen the node's port range.";

    QuotaExceeded     = "HF-0160", 400, Some("ERR-02-015"), "Delete a CVM or make one smaller, or ask an administrator for more: `holdfast admin quotas set`.";
    RateLimited       = "HF-0161", 429, None, "Wait as long as Retry-After says; RateLimit-Remaining tells beforehand how much is left.";

    // Why an operation failed
    StepTimeout       = "HF-0200", 504, None, "See the operation's events for how far it came, and the node's state.";
    NodeFailed        = "HF-0201", 502, None, "Ask the operator; administrators see the node's own message on the operation.";
    BootFailed        = "HF-0202", 502, None, "Read the CVM's logs; the failing step is in boot_error.";
    BootTimeout       = "HF-0203", 504, None, "Read the serial log; the guest did not come up in time.";
    Cancelled         = "HF-0204", 409, None, "Start the operation again if it was cancelled by mistake.";
    GuestExited       = "HF-0205", 502, None, "Read the serial log; the VM ended while it was booting.";
    PlanUnknown       = "HF-0206", 500, None, "Start a version of the server that knows it and it goes on; or an administrator abandons it.";
    NodeDiskFull      = "HF-0209", 507, None, "Ask the operator to make room on the node's disk; then ask again.";
    GuestStays        = "HF-0208", 504, None, "Stop the CVM instead, or allow force (allow_force_stop) and shut it down again.";
    OperationUnreadable = "HF-0207", 500, None, "It is tried again when the server starts; administrators see the cause, and can abandon it.";

    // Nodes and logs
    SessionStale      = "HF-0300", 409, None, "Register again.";
    NodeUnreachable   = "HF-0301", 503, None, "Wait until the node is ONLINE again.";
    AgentSilent       = "HF-0302", 503, None, "Wait until the guest agent answers, or read the serial log.";
    ContainerNotFound = "HF-0303", 404, None, "List the containers with `phala ps`.";
    NodeTokenNotFound = "HF-0305", 404, None, "See GET /holdfast/v1/node-tokens for the tokens there are; a revoked one stays so.";
    LogTokenInvalid   = "HF-0304", 401, None, "Fetch a fresh log URL; they expire.";

    // Credentials
    LoginFailed       = "HF-0401", 401, None, "Check the name and the password; the operator sets one with `holdfast admin users set-password`.";
    TooManyAttempts   = "HF-0402", 429, None, "Wait as many seconds as Retry-After says.";
    TokenNotFound     = "HF-0403", 404, None, "See GET /api/v1/tokens for the tokens there are; a deleted one stays so.";
    DeviceCodeUnknown = "HF-0404", 404, None, "Look at the code on the device again; it works for 15 minutes and once.";
    NotALogin         = "HF-0405", 400, None, "Delete the token with DELETE /api/v1/tokens/{id} to make it worthless.";

    // Logins through an identity provider
    OidcState         = "HF-0420", 400, None, "Begin the login again in this browser, with cookies allowed; each one works once.";
    OidcExpired       = "HF-0421", 400, None, "Begin the login again; it has to be over within ten minutes.";
    OidcDenied        = "HF-0422", 403, None, "Begin the login again, or ask whoever runs the identity provider.";
    OidcUnreachable   = "HF-0423", 503, None, "Try again in a moment, or sign in with a password or an API key.";
    OidcAnswer        = "HF-0424", 502, None, "Begin the login again; if that does not help, ask the operator to look at the server's log.";
    OidcToken         = "HF-0425", 401, None, "Begin the login again; if that does not help, ask the operator to look at the server's log.";
    OidcNoAccount     = "HF-0426", 403, None, "Ask the operator for an account: `holdfast admin users link` gives one to your subject.";
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.id())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let id = String::deserialize(d)?;
        Self::from_id(&id).ok_or_else(|| serde::de::Error::custom("unknown error code"))
    }
}

/// One field that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Where it is: `["body", "name"]`, `["query", "limit"]`.
    pub loc: Vec<String>,
    pub message: String,
    /// Kind of mistake: `missing`, `string_pattern_mismatch`, ...
    pub kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub message: String,
    pub details: Vec<Detail>,
    pub internal: Option<String>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new(), internal: None }
    }

    /// Something of ours broke. The cause is for the log; the caller learns only that it happened.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            code: Code::Internal,
            message: "Something went wrong on the server.".to_owned(),
            details: Vec::new(),
            internal: Some(cause.to_string()),
        }
    }

    /// One wrong field. `place` is `body`, `query`, `path` or `header`.
    pub fn field(place: &str, field: &str, kind: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let mut error = Self::new(Code::InvalidRequest, format!("{field}: {message}"));
        error.details.push(Detail {
            loc: [place].into_iter().chain(field.split('.')).map(str::to_owned).collect(),
            message,
            kind: kind.to_owned(),
        });
        error
    }

    pub fn with_internal(mut self, cause: impl fmt::Display) -> Self {
        self.internal = Some(cause.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.id(), self.message)?;
        match &self.internal {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<_> = Code::ALL.iter().map(|c| c.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Code::ALL.len());
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/errors.md");
        for code in Code::ALL {
            assert!(page.contains(&format!("## {} ", code.id())), "{} has no section in docs/errors.md", code.id());
        }
    }
}
