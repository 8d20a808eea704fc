//! What webhooks say: the names of events, and the body of each.
//!
//! The one rule: the id and the bytes of a message follow from its event alone. So every endpoint is told the same, and
//! whoever is told twice can see that it is the same.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::webhook_feed::Heard;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Everything that can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    CvmCreated,
    CvmStarted,
    CvmCreateFailed,
    CvmRestarted,
    CvmUpdated,
    CvmStopped,
    CvmDeleted,
    /// Known to the contract; nothing here has to be approved on a chain, so it never happens.
    CvmUpdatePendingApproval,
    OperationAccepted,
    OperationSucceeded,
    OperationFailed,
    OperationCancelled,
}

impl Event {
    pub const ALL: [Self; 12] = [
        Self::CvmCreated,
        Self::CvmStarted,
        Self::CvmCreateFailed,
        Self::CvmRestarted,
        Self::CvmUpdated,
        Self::CvmStopped,
        Self::CvmDeleted,
        Self::CvmUpdatePendingApproval,
        Self::OperationAccepted,
        Self::OperationSucceeded,
        Self::OperationFailed,
        Self::OperationCancelled,
    ];

    /// The name in subscriptions, headers and bodies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CvmCreated => "cvm.created",
            Self::CvmStarted => "cvm.started",
            Self::CvmCreateFailed => "cvm.create_failed",
            Self::CvmRestarted => "cvm.restarted",
            Self::CvmUpdated => "cvm.updated",
            Self::CvmStopped => "cvm.stopped",
            Self::CvmDeleted => "cvm.deleted",
            Self::CvmUpdatePendingApproval => "cvm.update.pending_approval",
            Self::OperationAccepted => "operation.accepted",
            Self::OperationSucceeded => "operation.succeeded",
            Self::OperationFailed => "operation.failed",
            Self::OperationCancelled => "operation.cancelled",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// The name of a test's event.
pub const TEST: &str = "webhook.test";

/// The name of an event that was kept, as a constant.
pub fn name_of(text: &str) -> &'static str {
    Event::parse(text).map_or(TEST, Event::name)
}

/// A set of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// Those of these names; names that are none are passed over.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().filter_map(Event::parse).fold(0, |all, event| all | event.bit()))
    }

    pub fn has(self, event: Event) -> bool {
        self.0 & event.bit() != 0
    }
}

/// A message, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: String,
    pub name: &'static str,
    pub body: String,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    event: &'a str,
    version: &'static str,
    created_at: Timestamp,
    workspace: Workspace<'a>,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Workspace<'a> {
    id: &'a str,
    name: &'a str,
}

#[derive(Default, Serialize)]
struct Data<'a> {
    cvm_id: &'a str,
    cvm_name: &'a str,
    app_id: Option<&'a str>,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_type: Option<&'a str>,
}

/// Messages that one event makes, at most.
pub const MOST: i64 = 2;

/// What an event is called here, in the order in which it is told.
pub fn events_of(heard: &Heard) -> [Option<Event>; MOST as usize] {
    let creates = matches!(heard.operation_type.as_str(), "create" | "replicate");
    let end = heard.event_type.rsplit('.').next().unwrap_or_default();
    match end {
        "start" if heard.seq == 1 => [Some(Event::OperationAccepted), creates.then_some(Event::CvmCreated)],
        "end" => {
            let cvm = match heard.operation_type.as_str() {
                "create" | "replicate" | "power_on" => Event::CvmStarted,
                "restart" => Event::CvmRestarted,
                "power_off" | "shutdown" => Event::CvmStopped,
                "delete" => Event::CvmDeleted,
                _ => Event::CvmUpdated,
            };
            [Some(cvm), Some(Event::OperationSucceeded)]
        }
        "error" => {
            let cancelled = heard.operation_status == "cancelled";
            let operation = if cancelled { Event::OperationCancelled } else { Event::OperationFailed };
            [creates.then_some(Event::CvmCreateFailed), Some(operation)]
        }
        _ => [None, None],
    }
}

/// The message that tells of an event.
pub fn message(heard: &Heard, event: Event) -> Result<Message, Error> {
    let name = event.name();
    let digest = Sha256::digest(format!("{}.{}.{name}", heard.operation_uuid, heard.seq));
    let id = format!("evt_{}", hex::encode(&digest[..16]));
    let of_operation = name.starts_with("operation.");
    let failed = matches!(event, Event::CvmCreateFailed | Event::OperationFailed | Event::OperationCancelled);
    let error = failed.then(|| heard.error_message.as_deref().unwrap_or("The operation failed."));
    let data = Data {
        cvm_id: &heard.resource_uuid,
        cvm_name: &heard.resource_name,
        app_id: heard.app_id.as_deref(),
        status: &heard.state,
        error,
        error_code: heard.error_code.as_deref().filter(|_| failed && of_operation),
        operation_id: of_operation.then_some(heard.operation_uuid.as_str()),
        operation_type: of_operation.then_some(heard.operation_type.as_str()),
    };
    let workspace = Workspace { id: &heard.workspace_slug, name: &heard.workspace_name };
    let body = Body { id: &id, event: name, version: "1", created_at: Timestamp(heard.at), workspace, data };
    let body = serde_json::to_string(&body).map_err(Error::internal)?;
    Ok(Message { id, name, body })
}

/// An id that no event has.
pub fn fresh_id() -> String {
    format!("evt_{}", uuid::Uuid::new_v4().simple())
}

/// A message that tells of nothing: it only shows that messages arrive.
pub fn test(slug: &str, workspace: &str, now: Timestamp) -> Result<Message, Error> {
    let id = fresh_id();
    let data = Data { cvm_name: "test", status: "running", ..Data::default() };
    let workspace = Workspace { id: slug, name: workspace };
    let body = Body { id: &id, event: TEST, version: "1", created_at: now, workspace, data };
    let body = serde_json::to_string(&body).map_err(Error::internal)?;
    Ok(Message { id, name: TEST, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(operation: &str, event: &str, status: &str, seq: i64) -> Heard {
        Heard {
            position: 7,
            workspace_id: 1,
            workspace_slug: "team".to_owned(),
            workspace_name: "Team".to_owned(),
            operation_uuid: "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e".to_owned(),
            operation_type: operation.to_owned(),
            operation_status: status.to_owned(),
            error_code: Some("HF-0202".to_owned()),
            error_message: Some("no such image".to_owned()),
            resource_uuid: "5d1c2a52-1111-4222-8333-444455556666".to_owned(),
            resource_name: "web".to_owned(),
            app_id: Some("ab".repeat(20)),
            seq,
            event_type: event.to_owned(),
            state: "error".to_owned(),
            at: 1_700_000_000_000_000,
        }
    }

    fn names(operation: &str, event: &str, status: &str, seq: i64) -> Vec<&'static str> {
        events_of(&heard(operation, event, status, seq)).into_iter().flatten().map(Event::name).collect()
    }

    #[test]
    fn what_an_operation_is_called() {
        let cases = [
            (("create", "instance.create.start", "running", 1), vec!["operation.accepted", "cvm.created"]),
            (("create", "instance.create.end", "done", 9), vec!["cvm.started", "operation.succeeded"]),
            (("replicate", "instance.replicate.error", "failed", 9), vec!["cvm.create_failed", "operation.failed"]),
            (("create", "instance.create.error", "cancelled", 9), vec!["cvm.create_failed", "operation.cancelled"]),
            (("restart", "instance.restart.end", "done", 9), vec!["cvm.restarted", "operation.succeeded"]),
            (("power_off", "instance.power_off.end", "done", 9), vec!["cvm.stopped", "operation.succeeded"]),
            (("shutdown", "instance.shutdown.end", "done", 9), vec!["cvm.stopped", "operation.succeeded"]),
            (("delete", "instance.delete.end", "done", 9), vec!["cvm.deleted", "operation.succeeded"]),
            (("env_update", "instance.env_update.end", "done", 9), vec!["cvm.updated", "operation.succeeded"]),
            (("resize", "instance.resize.error", "failed", 9), vec!["operation.failed"]),
            (("resize", "instance.resize.start", "pending", 1), vec!["operation.accepted"]),
        ];
        for ((operation, event, status, seq), expected) in cases {
            assert_eq!(names(operation, event, status, seq), expected, "{event}");
        }
    }

    #[test]
    fn the_same_event_makes_the_same_message() {
        let event = heard("create", "instance.create.error", "failed", 9);
        let one = message(&event, Event::CvmCreateFailed).expect("a message");
        assert_eq!(one, message(&event, Event::CvmCreateFailed).expect("a message"));
        assert_ne!(one.id, message(&event, Event::OperationFailed).expect("a message").id);
        let body: serde_json::Value = serde_json::from_str(&one.body).expect("JSON");
        assert_eq!(
            body,
            serde_json::json!({
                "id": one.id, "event": "cvm.create_failed", "version": "1", "created_at": "2023-11-14T22:13:20.000000Z",
                "workspace": { "id": "team", "name": "Team" },
                "data": { "cvm_id": "5d1c2a52-1111-4222-8333-444455556666", "cvm_name": "web", "app_id": "ab".repeat(20),
                    "status": "error", "error": "no such image" },
            })
        );
    }

    #[test]
    fn names_come_back() {
        for event in Event::ALL {
            assert_eq!(Event::parse(event.name()), Some(event));
            assert!(Events::of([event.name()]).has(event));
        }
        assert!(!Events::of(["cvm.created", "nonsense"]).has(Event::CvmDeleted));
    }
}
