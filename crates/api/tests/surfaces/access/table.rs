//! Every route of all three documents, and what it asks of its caller.
//!
//! A new route gets one row here, in the order of paths: `row(METHOD, PATH, ACTION)`. The walk then asks it as every role,
//! in the caller's own workspace and from another one. What a row may say beside that:
//!
//! - `.shared()`: its parameters name what all workspaces have in common, such as the KMS; nobody is told 404.
//! - `.whole()`: it is about the whole workspace although its action is about projects, so a key that is limited to some
//!   is refused.
//! - `.seen_by_admin()`: whoever runs the installation sees it of every workspace.
//! - `.quiet("why")`: a mutation by its method that changes nothing anybody could miss, so that it leaves no audit row.
//! - `.repeats("why")`: the same request again is answered with what it made, and needs no second audit row.
//! - `open(.., "why")` in place of `row(..)`: it asks for no key, because something else is the permission.
//!
//! If a parameter of its path is new, `World::new` in `walk.rs` says what it stands for; if the route needs a body to come
//! as far as its ids, `World::body` has it.

use holdfast_model::access::Action::{self, *};
use holdfast_model::access::Reach;

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub method: &'static str,
    pub path: &'static str,
    /// `None`: it asks for no key.
    pub action: Option<Action>,
    pub shared: bool,
    /// Why a success leaves no audit row.
    pub quiet: Option<&'static str>,
    /// Why a success may change nothing where the same request did before.
    pub repeats: Option<&'static str>,
    /// Whoever runs the installation sees it of every workspace.
    pub seen_by_admin: bool,
    /// It is about the whole workspace although its action is about projects.
    whole: bool,
}

impl Row {
    const fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    const fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    const fn seen_by_admin(self) -> Self {
        Self { seen_by_admin: true, ..self }
    }

    const fn quiet(self, why: &'static str) -> Self {
        Self { quiet: Some(why), ..self }
    }

    const fn repeats(self, why: &'static str) -> Self {
        Self { repeats: Some(why), ..self }
    }

    /// What a key has to be for.
    pub fn reach(&self) -> Reach {
        if self.whole { Reach::Workspace } else { self.action.map_or(Reach::Projects, Action::reach) }
    }

    pub fn mutates(&self) -> bool {
        self.method != "GET"
    }
}

const fn row(method: &'static str, path: &'static str, action: Action) -> Row {
    Row {
        method,
        path,
        action: Some(action),
        shared: false,
        quiet: None,
        repeats: None,
        seen_by_admin: false,
        whole: false,
    }
}

const fn open(method: &'static str, path: &'static str, _why: &'static str) -> Row {
    Row { method, path, action: None, shared: false, quiet: None, repeats: None, seen_by_admin: false, whole: false }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // Phala
    row("GET", "/api/v1/apps", Read),
    row("GET", "/api/v1/apps/filter-options", Read),
    row("GET", "/api/v1/apps/{app_id}", Read),
    row("GET", "/api/v1/apps/{app_id}/cvms", Read),
    row("POST", "/api/v1/apps/{app_id}/cvms/{vm_uuid}/replicas", WriteVms),
    row("GET", "/api/v1/apps/{app_id}/device-allowlist", Read),
    row("GET", "/api/v1/apps/{app_id}/events", Read),
    row("POST", "/api/v1/apps/{app_id}/instances", WriteVms),
    row("GET", "/api/v1/apps/{app_id}/revisions", Read),
    row("GET", "/api/v1/apps/{app_id}/revisions/{revision_id}", Read),
    row("POST", "/api/v1/apps/{app_id}/revisions/{revision_id}/redeploy", WriteVms),
    row("GET", "/api/v1/apps/{app_id}/usage", Read),
    row("GET", "/api/v1/auth/authenticated", Read),
    open("POST", "/api/v1/auth/device/code", "a device has no key yet").quiet("a code that nobody approves gives nothing"),
    open("POST", "/api/v1/auth/device/token", "the device's code is the permission, once somebody has approved it"),
    row("POST", "/api/v1/auth/logout", Own),
    row("GET", "/api/v1/auth/me", Read),
    open("POST", "/api/v1/auth/token", "the password is the permission"),
    row("GET", "/api/v1/cvms", Read),
    row("POST", "/api/v1/cvms", WriteVms).repeats("a commit names what it makes"),
    row("POST", "/api/v1/cvms/batch-stop", WriteVms).quiet("every CVM that it stops has a row; it may stop none"),
    row("PATCH", "/api/v1/cvms/instance-ids", WriteVms).quiet("an instance id is given once; this only tells it"),
    row("GET", "/api/v1/cvms/paginated", Read),
    row("POST", "/api/v1/cvms/provision", WriteVms).quiet("prepares what a commit may use, and nothing comes of it by itself"),
    row("DELETE", "/api/v1/cvms/{cvm_id}", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/attestation", Read),
    row("GET", "/api/v1/cvms/{cvm_id}/available-os-images", Read),
    row("GET", "/api/v1/cvms/{cvm_id}/compose_file", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/compose_file", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/compose_file", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/compose_file/provision", WriteVms).quiet("prepares what an update may use"),
    row("GET", "/api/v1/cvms/{cvm_id}/composition", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/docker-compose", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/docker-compose.yml", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/envs", WriteVms),
    row("PATCH", "/api/v1/cvms/{cvm_id}/instance-id", WriteVms).quiet("an instance id is given once; this only tells it"),
    row("PATCH", "/api/v1/cvms/{cvm_id}/listed", WriteVms),
    row("PATCH", "/api/v1/cvms/{cvm_id}/name", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/network", Read),
    row("GET", "/api/v1/cvms/{cvm_id}/network-config", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/network-config", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/operation-status", Read),
    row("GET", "/api/v1/cvms/{cvm_id}/operations", Read),
    row("POST", "/api/v1/cvms/{cvm_id}/operations/cancel", WriteVms),
    row("PATCH", "/api/v1/cvms/{cvm_id}/os-image", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/ports", Read),
    row("PUT", "/api/v1/cvms/{cvm_id}/ports", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/pre-launch-script", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/pre-launch-script", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/replicas", WriteVms),
    row("PATCH", "/api/v1/cvms/{cvm_id}/resources", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/restart", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/revisions/{revision_id}/redeploy", WriteVms),
    row("PATCH", "/api/v1/cvms/{cvm_id}/scheduled-delete", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/shutdown", WriteVms),
    row("POST", "/api/v1/cvms/{cvm_id}/start", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/state", Read),
    row("GET", "/api/v1/cvms/{cvm_id}/stats", Read),
    row("POST", "/api/v1/cvms/{cvm_id}/stop", WriteVms),
    row("GET", "/api/v1/cvms/{cvm_id}/user_config", Read),
    row("PATCH", "/api/v1/cvms/{cvm_id}/visibility", WriteVms),
    row("GET", "/api/v1/instance-types", Read),
    row("GET", "/api/v1/instance-types/{family}", Read).shared(),
    row("GET", "/api/v1/kms", Read),
    row("GET", "/api/v1/kms/phala/next_app_id", Read),
    row("GET", "/api/v1/kms/{kms_id}", Read).shared(),
    row("GET", "/api/v1/kms/{kms_id}/info", Read).shared(),
    row("GET", "/api/v1/kms/{kms_id}/nodes", Read).shared(),
    row("GET", "/api/v1/kms/{kms_id}/pubkey/{app_id}", Read).shared(),
    row("GET", "/api/v1/os-images", Read),
    row("POST", "/api/v1/status/batch", Read).quiet("reads several CVMs at once"),
    row("GET", "/api/v1/teepods/available", Read),
    row("GET", "/api/v1/teepods/cvm-create-resources", Read),
    row("GET", "/api/v1/tokens", Own),
    row("POST", "/api/v1/tokens", Own),
    row("DELETE", "/api/v1/tokens/{token_id}", Own),
    row("POST", "/api/v1/tokens/{token_id}/refresh", Own),
    row("GET", "/api/v1/user/ssh-keys", Own),
    row("POST", "/api/v1/user/ssh-keys", Own).whole(),
    row("POST", "/api/v1/user/ssh-keys/github-profile", Own).whole(),
    row("POST", "/api/v1/user/ssh-keys/github-sync", Own).whole(),
    row("DELETE", "/api/v1/user/ssh-keys/{key_id}", Own).whole(),
    row("GET", "/api/v1/workspace/webhooks", Read).whole(),
    row("POST", "/api/v1/workspace/webhooks", ManageWebhooks),
    row("DELETE", "/api/v1/workspace/webhooks/{webhook_id}", ManageWebhooks),
    row("GET", "/api/v1/workspace/webhooks/{webhook_id}", Read).whole(),
    row("PUT", "/api/v1/workspace/webhooks/{webhook_id}", ManageWebhooks),
    row("GET", "/api/v1/workspace/webhooks/{webhook_id}/deliveries", Read).whole(),
    row("POST", "/api/v1/workspace/webhooks/{webhook_id}/deliveries/{event_id}/resend", ManageWebhooks),
    row("POST", "/api/v1/workspace/webhooks/{webhook_id}/reveal-secret", ManageWebhooks),
    row("POST", "/api/v1/workspace/webhooks/{webhook_id}/rotate-secret", ManageWebhooks),
    row("GET", "/api/v1/workspace/webhooks/{webhook_id}/stats", Read).whole(),
    row("POST", "/api/v1/workspace/webhooks/{webhook_id}/test", ManageWebhooks),
    row("GET", "/api/v1/workspaces", Read),
    row("POST", "/api/v1/workspaces/check-slug", Read).quiet("only tells whether a slug is free"),
    row("GET", "/api/v1/workspaces/{team_slug}", Read),
    row("GET", "/api/v1/workspaces/{team_slug}/nodes", Read),
    row("GET", "/api/v1/workspaces/{team_slug}/quotas", Read),
    row("GET", "/api/v1/workspaces/{workspace_slug}/invitations", ManageMembers),
    row("POST", "/api/v1/workspaces/{workspace_slug}/invitations", ManageMembers),
    row("POST", "/api/v1/workspaces/{workspace_slug}/invitations/shareable", ManageMembers),
    row("DELETE", "/api/v1/workspaces/{workspace_slug}/invitations/{invitation_id}", ManageMembers),
    row("POST", "/api/v1/workspaces/{workspace_slug}/leave", Own).whole(),
    row("GET", "/api/v1/workspaces/{workspace_slug}/members", Read),
    row("DELETE", "/api/v1/workspaces/{workspace_slug}/members/{user_id}", ManageMembers),
    row("PATCH", "/api/v1/workspaces/{workspace_slug}/members/{user_id}", ManageMembers),
    // Nirvana
    row("GET", "/v1/audit_logs", ReadAudit),
    row("GET", "/v1/audit_logs/{audit_log_id}", ReadAudit),
    row("DELETE", "/v1/compute/vms/{vm_id}", WriteVms),
    row("POST", "/v1/compute/vms/{vm_id}/restart", WriteVms),
    row("GET", "/v1/operations", Read),
    row("GET", "/v1/operations/{operation_id}", Read),
    // Holdfast
    open("GET", "/auth/oidc/callback", "the identity provider's signed token is the permission"),
    open("GET", "/auth/oidc/login", "who begins a login has no key yet"),
    row("GET", "/holdfast/v1/audit-logs", ReadAudit),
    row("GET", "/holdfast/v1/audit-logs/{id}", ReadAudit),
    row("POST", "/holdfast/v1/invitations/accept", Own).whole(),
    open("GET", "/holdfast/v1/logs/{cvm}", "the URL carries a signed token, which is the permission"),
    open("GET", "/holdfast/v1/logs/{cvm}/{container}", "the URL carries a signed token, which is the permission"),
    row("GET", "/holdfast/v1/node-tokens", RunInstallation),
    row("POST", "/holdfast/v1/node-tokens", RunInstallation),
    row("DELETE", "/holdfast/v1/node-tokens/{id}", RunInstallation),
    row("GET", "/holdfast/v1/nodes", RunInstallation),
    row("GET", "/holdfast/v1/operations", Read),
    row("GET", "/holdfast/v1/operations/export", RunInstallation),
    row("GET", "/holdfast/v1/operations/stream", Read),
    row("GET", "/holdfast/v1/operations/{id}", Read).seen_by_admin(),
    row("POST", "/holdfast/v1/operations/{id}/abandon", RunInstallation),
    row("POST", "/holdfast/v1/operations/{id}/cancel", WriteVms),
    row("GET", "/holdfast/v1/operations/{id}/events", Read),
    row("POST", "/holdfast/v1/operations/{id}/retry", WriteVms),
    row("GET", "/holdfast/v1/operations/{id}/wait", Read),
    row("GET", "/holdfast/v1/projects", Read),
    row("POST", "/holdfast/v1/projects", ManageProjects),
    row("DELETE", "/holdfast/v1/projects/{project}", ManageProjects),
    row("GET", "/holdfast/v1/projects/{project}", Read),
    row("PATCH", "/holdfast/v1/projects/{project}", ManageProjects),
    row("DELETE", "/holdfast/v1/quotas/{workspace}", RunInstallation),
    row("GET", "/holdfast/v1/quotas/{workspace}", RunInstallation),
    row("PATCH", "/holdfast/v1/quotas/{workspace}", RunInstallation),
    row("GET", "/holdfast/v1/users", RunInstallation),
    row("POST", "/holdfast/v1/users", RunInstallation),
    row("GET", "/holdfast/v1/users/{user}", RunInstallation),
    row("PATCH", "/holdfast/v1/users/{user}", RunInstallation),
    row("GET", "/holdfast/v1/workspaces", RunInstallation),
    row("POST", "/holdfast/v1/workspaces", RunInstallation),
    row("GET", "/holdfast/v1/workspaces/{workspace}", RunInstallation),
    row("PATCH", "/holdfast/v1/workspaces/{workspace}", RunInstallation),
    row("GET", "/holdfast/v1/workspaces/{workspace}/members", RunInstallation),
    row("DELETE", "/holdfast/v1/workspaces/{workspace}/members/{user}", RunInstallation),
    row("PUT", "/holdfast/v1/workspaces/{workspace}/members/{user}", RunInstallation),
];

/// The routes of our documents: method and path.
pub fn documented() -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for (_, document) in holdfast_api::documents() {
        let document = serde_json::to_value(&document).expect("a document");
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in item.as_object().expect("methods").keys() {
                routes.push((method.to_uppercase(), path.clone()));
            }
        }
    }
    routes
}

/// The row of a request: of those that fit its path, the one with the fewest parameters.
pub fn find(method: &str, path: &str) -> Option<&'static Row> {
    let parts: Vec<&str> = path.split('/').collect();
    let parameters = |row: &Row| row.path.matches('{').count();
    let fits = |row: &&Row| {
        let segments: Vec<&str> = row.path.split('/').collect();
        segments.len() == parts.len()
            && segments.iter().zip(&parts).all(|(segment, part)| segment.starts_with('{') || segment == part)
    };
    // The router looks for the path first, so a method that only the more general path has is not there.
    let least = ROWS.iter().filter(fits).map(parameters).min()?;
    ROWS.iter().filter(fits).find(|row| parameters(row) == least && row.method == method)
}
