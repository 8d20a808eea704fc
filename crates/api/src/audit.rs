//! The audit log as both surfaces that show it see it: its filters and its entries.

use std::net::IpAddr;

use holdfast_control::Principal;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::audit_log::{Entry, Filter};
use holdfast_store::page::Sort;
use serde::Serialize;
use utoipa::ToSchema;

use crate::extract::Params;

/// A request that changed something, or was refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditLog {
    /// Unique identifier of the entry.
    pub id: String,
    /// What was done: `vm.create`, `vm.delete`, `operation.cancel` ... `request.refused` for whatever was refused.
    pub action: String,
    pub actor: AuditLogActor,
    /// Address that the request came from; empty when it is not known.
    pub client_ip: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    pub method: String,
    pub path: String,
    pub status_code: i64,
    /// Empty when the client sent none.
    pub user_agent: String,
    /// What it was about; null for a request that was refused, whose path says it.
    pub target: Option<AuditLogTarget>,
}

/// Who asked.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditLogActor {
    pub id: String,
    /// Username at the time.
    pub name: String,
    /// `user`: a person, with one of their API keys. `api_key`: a key that acts for nobody.
    pub r#type: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct AuditLogTarget {
    pub id: String,
    /// `vm`, `operation` ...
    pub r#type: String,
}

impl AuditLog {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            id: entry.uuid.clone(),
            action: entry.action.clone(),
            actor: AuditLogActor {
                id: entry.actor_id.clone(),
                name: entry.actor_name.clone(),
                r#type: entry.actor_type.clone(),
            },
            client_ip: entry.client_address.clone().unwrap_or_default(),
            created_at: Timestamp(entry.at),
            method: entry.method.clone(),
            path: entry.path.clone(),
            status_code: entry.status_code,
            user_agent: entry.user_agent.clone(),
            target: entry.target().map(|(kind, id)| AuditLogTarget { id: id.to_owned(), r#type: kind.to_owned() }),
        }
    }
}

/// The filters that both surfaces have.
pub(crate) fn filter(who: &Principal, params: &Params) -> Result<Filter, Error> {
    let text = |name: &str| params.text(name).map(str::to_owned);
    let method = |word: &str| {
        let word = word.to_ascii_uppercase();
        ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&word.as_str()).then_some(word)
    };
    let address = |word: &str| word.parse::<IpAddr>().ok().map(|address| address.to_string());
    let actor_type = |word: &str| ["user", "api_key"].contains(&word).then(|| word.to_owned());
    Ok(Filter {
        scope: who.scope(),
        action: text("action"),
        actor_id: params.uuid("actor_id")?,
        actor_type: params.word("actor_type", actor_type)?,
        client_address: params.word("client_ip", address)?,
        created_min: params.time("created_at_min")?,
        created_max: params.time("created_at_max")?,
        method: params.word("method", method)?,
        path_part: text("path"),
        status_min: params.integer("status_code_min", 100, 599)?,
        status_max: params.integer("status_code_max", 100, 599)?,
        target_id: text("target_id"),
        target_type: text("target_type"),
        ..Filter::default()
    })
}

/// The orders that both surfaces have.
pub(crate) fn sort(params: &Params) -> Result<Sort, Error> {
    params.sort(&[("created_at", "at"), ("status_code", "status_code")])
}
