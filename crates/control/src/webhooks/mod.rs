//! Webhooks: a workspace's endpoints, and telling them what happens. `docs/webhooks.md` is the page for users.
//!
//! The one rule: nothing waits for a webhook. Events are committed first; the dispatcher reads them from the table, like
//! everybody who watches, and each endpoint has a position of its own there.
//!
//! | module | does |
//! |---|---|
//! | here | what users ask for |
//! | [`guard`] | where a message may go |
//! | [`message`] | what it says |
//! | [`send`] | one attempt |
//! | [`endpoint`] | order, retries and position of one endpoint; pure |
//! | [`dispatch`] | the loop around them |

pub mod dispatch;
pub mod endpoint;
pub mod guard;
pub mod message;
pub mod send;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::{idempotency_created, idempotency_take};
use holdfast_store::webhook_deliveries::{Delivery, DeliveryStats, Extra, delivery_extra, delivery_in};
use holdfast_store::webhooks::{
    NewWebhook, Webhook, webhook_count, webhook_delete, webhook_disable, webhook_enable, webhook_in, webhook_insert,
    webhook_rotate, webhook_update,
};
use holdfast_store::{Tx, commit};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{Control, Principal, RequestInfo};
use guard::Guard;
use message::Event;
use send::Secrets;

/// Begins every secret that this server makes.
pub const SECRET_PREFIX: &str = "whsec_";
/// What is shown of a secret where it is not shown.
pub const MASKED_SECRET: &str = "whsec_****";
/// How long the secret before a rotation stays valid.
const BOTH_VALID: Duration = Duration::from_secs(86_400);
/// Characters of a secret that a client brings.
const SECRET_LENGTH: std::ops::RangeInclusive<usize> = 16..=256;
/// Characters of a name.
const LONGEST_NAME: usize = 100;

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct Options {
    pub guard: Guard,
    /// Who may sign a receiver's certificate, beside those that the host trusts ([`send::authorities`]).
    pub authorities: Vec<reqwest::Certificate>,
    /// Endpoints that a workspace may have.
    pub per_workspace: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self { guard: Guard::default(), authorities: Vec::new(), per_workspace: 50 }
    }
}

/// What a client wants of an endpoint; `None`: as it is.
#[derive(Debug, Default)]
pub struct Wanted {
    pub url: Option<String>,
    /// `Some(None)`: no name.
    pub name: Option<Option<String>>,
    pub events: Option<Vec<String>>,
    pub enabled: Option<bool>,
}

/// A secret in the clear, for the answer that shows it.
pub struct Shown {
    pub webhook: Webhook,
    pub secret: Zeroizing<String>,
}

/// The public id of an endpoint.
pub fn public_id(webhook: i64) -> String {
    hashid::encode(Prefix::Webhook, webhook)
}

fn unknown() -> Error {
    Error::new(Code::WebhookNotFound, "There is no such webhook.")
}

fn row_of(id: &str) -> Result<i64, Error> {
    hashid::decode(Prefix::Webhook, id).ok_or_else(unknown)
}

impl Control {
    /// The endpoints of the caller's workspace, oldest first.
    pub async fn webhooks(&self, who: &Principal) -> Result<Vec<Webhook>, Error> {
        self.store.webhooks(who.workspace_id).await
    }

    /// One of them.
    pub async fn webhook(&self, who: &Principal, id: &str) -> Result<Webhook, Error> {
        self.store.webhook(who.workspace_id, row_of(id)?).await?.ok_or_else(unknown)
    }

    /// Makes an endpoint that is told of what happens from now on. `secret`: the client's own, else one is made.
    pub async fn webhook_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        (url, name, events): (&str, Option<&str>, &[String]),
        secret: Option<&str>,
    ) -> Result<Shown, Error> {
        who.require(Action::ManageWebhooks)?;
        let url = self.checked_url(url)?;
        let (name, events) = (checked_name(name)?, checked_events(events)?);
        let secret = match secret {
            Some(text) => checked_secret(text)?,
            None => fresh_secret()?,
        };
        let (uuid, now) = (Uuid::new_v4().to_string(), self.now());
        let wrapped = self.wrap(&uuid, &secret)?;
        let mut tx = self.store.begin().await?;
        self.take(&mut tx, who, info, now).await?;
        let limit = self.settings.webhooks.per_workspace;
        if webhook_count(&mut tx, who.workspace_id).await? >= limit {
            let message = format!("The workspace has {limit} webhooks already, as many as it may have.");
            return Err(Error::new(Code::WebhookLimit, message));
        }
        let new = NewWebhook { uuid: &uuid, name: name.as_deref(), url: &url, events: &events, secret: &wrapped };
        let row = webhook_insert(&mut tx, who.workspace_id, new, now).await?;
        let webhook = self.end(tx, who, info, row, ("webhook.create", 201), true).await?;
        Ok(Shown { webhook, secret })
    }

    /// Changes an endpoint.
    pub async fn webhook_update(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        wanted: Wanted,
    ) -> Result<Webhook, Error> {
        who.require(Action::ManageWebhooks)?;
        let row = row_of(id)?;
        let url = wanted.url.as_deref().map(|url| self.checked_url(url)).transpose()?;
        let name = wanted.name.map(|name| checked_name(name.as_deref())).transpose()?;
        let events = wanted.events.as_deref().map(checked_events).transpose()?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if !self.take(&mut tx, who, info, now).await? {
            return webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown);
        }
        let before = webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        let name = name.unwrap_or(before.name);
        let (url, events) = (url.unwrap_or(before.url), events.unwrap_or(before.events));
        webhook_update(&mut tx, row, (name.as_deref(), &url, &events), now).await?;
        match wanted.enabled {
            Some(true) if !before.enabled => webhook_enable(&mut tx, row, now).await?,
            Some(false) if before.enabled => webhook_disable(&mut tx, row, None, now).await?,
            _ => {}
        }
        self.end(tx, who, info, row, ("webhook.update", 200), false).await
    }

    /// Deletes an endpoint with its history.
    pub async fn webhook_delete(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<(), Error> {
        who.require(Action::ManageWebhooks)?;
        let (row, now) = (row_of(id)?, self.now());
        let mut tx = self.store.begin().await?;
        if !self.take(&mut tx, who, info, now).await? {
            return Ok(());
        }
        webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        webhook_delete(&mut tx, row).await?;
        audit_insert(&mut tx, who, info, entry("webhook.delete", id, 204), now).await?;
        commit(tx).await?;
        self.ring_webhooks();
        Ok(())
    }

    /// An endpoint's secret.
    pub async fn webhook_reveal(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Shown, Error> {
        who.require(Action::ManageWebhooks)?;
        let (row, now) = (row_of(id)?, self.now());
        let mut tx = self.store.begin().await?;
        let webhook = webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        // Takes no idempotency key: it changes nothing, and its answer must be kept nowhere.
        audit_insert(&mut tx, who, info, entry("webhook.reveal_secret", id, 200), now).await?;
        commit(tx).await?;
        let secret = self.unwrap(&webhook.uuid, &webhook.secret)?;
        Ok(Shown { webhook, secret })
    }

    /// Gives an endpoint another secret; the one there is stays valid for a day.
    pub async fn webhook_rotate(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Shown, Error> {
        who.require(Action::ManageWebhooks)?;
        let (row, now) = (row_of(id)?, self.now());
        let secret = fresh_secret()?;
        let mut tx = self.store.begin().await?;
        self.take(&mut tx, who, info, now).await?;
        let before = webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        let wrapped = self.wrap(&before.uuid, &secret)?;
        webhook_rotate(&mut tx, row, &wrapped, now.plus(BOTH_VALID), now).await?;
        let webhook = self.end(tx, who, info, row, ("webhook.rotate_secret", 200), true).await?;
        Ok(Shown { webhook, secret })
    }

    /// Sends an endpoint an event that tells of nothing. It is in the history at once, and sent soon.
    pub async fn webhook_test(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Delivery, Error> {
        let now = self.now();
        let test = message::test(&who.workspace_slug, &who.workspace_name, now)?;
        self.webhook_extra(who, info, (id, None), test).await
    }

    /// Sends the event of a delivery once more.
    pub async fn webhook_resend(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        event: &str,
    ) -> Result<Delivery, Error> {
        let new = message::Message { id: message::fresh_id(), name: message::TEST, body: String::new() };
        self.webhook_extra(who, info, (id, Some(event)), new).await
    }

    /// A test, or the repetition of a delivery.
    async fn webhook_extra(
        &self,
        who: &Principal,
        info: &RequestInfo,
        (id, repeats): (&str, Option<&str>),
        new: message::Message,
    ) -> Result<Delivery, Error> {
        who.require(Action::ManageWebhooks)?;
        let (row, now) = (row_of(id)?, self.now());
        let mut tx = self.store.begin().await?;
        let fresh = self.take(&mut tx, who, info, now).await?;
        let webhook = webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        let event = |error: &str| Error::new(Code::WebhookDeliveryNotFound, error.to_owned());
        let first = match repeats {
            Some(event_id) => {
                let found = delivery_in(&mut tx, row, event_id).await?;
                Some(found.ok_or_else(|| event("There is no delivery of this event, or it is not kept any more."))?)
            }
            None => None,
        };
        let original = first.as_ref().map(|first| match first.original_event_id.as_str() {
            "" => first.event_id.as_str(),
            earlier => earlier,
        });
        if !fresh {
            // The first answer was lost: what was made is the newest of its kind.
            drop(tx);
            let mut history = self.store.deliveries(row, 100, 0).await?.into_iter();
            let is_it = |one: &Delivery| match original {
                Some(original) => one.original_event_id == original,
                None => one.event_type == message::TEST && one.original_event_id.is_empty(),
            };
            let made = history.find(is_it);
            return made.ok_or_else(|| event("The delivery that this request made is not kept any more."));
        }
        if !webhook.enabled {
            return Err(Error::new(Code::WebhookDisabled, "The webhook is disabled; nothing is sent to it."));
        }
        let extra = Extra {
            webhook: row,
            event_id: &new.id,
            original_event_id: original.unwrap_or_default(),
            event_type: first.as_ref().map_or(new.name, |first| first.event_type.as_str()),
            body: first.as_ref().map_or(new.body.as_str(), |first| first.body.as_str()),
            request_url: &webhook.url,
        };
        let delivery = delivery_extra(&mut tx, extra, now).await?;
        let action = if repeats.is_some() { "webhook.resend" } else { "webhook.test" };
        audit_insert(&mut tx, who, info, entry(action, id, 200), now).await?;
        commit(tx).await?;
        self.ring_webhooks();
        Ok(delivery)
    }

    /// What was sent to an endpoint and what waits, newest first.
    pub async fn webhook_deliveries(
        &self,
        who: &Principal,
        id: &str,
        limit: i64,
        offset: i64,
    ) -> Result<Vec<Delivery>, Error> {
        let webhook = self.webhook(who, id).await?;
        self.store.deliveries(webhook.id, limit, offset).await
    }

    /// Figures of an endpoint's deliveries.
    pub async fn webhook_stats(&self, who: &Principal, id: &str) -> Result<DeliveryStats, Error> {
        let webhook = self.webhook(who, id).await?;
        self.store.delivery_stats(webhook.id).await
    }

    /// Endpoints, or what is to be sent to them, have changed.
    pub(crate) fn ring_webhooks(&self) {
        self.webhooks_bell.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The secrets of an endpoint, for signing.
    pub(crate) fn webhook_secrets(&self, webhook: &Webhook) -> Result<Secrets, Error> {
        let previous = webhook.previous_secret.as_deref().map(|text| self.unwrap(&webhook.uuid, text)).transpose()?;
        Ok(Secrets {
            current: self.unwrap(&webhook.uuid, &webhook.secret)?,
            previous,
            previous_until: Timestamp(webhook.previous_until.unwrap_or_default()),
        })
    }

    /// Takes the request's idempotency key. False when the request was carried out before.
    async fn take(&self, tx: &mut Tx, who: &Principal, info: &RequestInfo, now: Timestamp) -> Result<bool, Error> {
        match &info.idempotency {
            Some(key) => idempotency_take(tx, who.workspace_id, key, now).await,
            None => Ok(true),
        }
    }

    /// The end of a mutation: audit row, key, commit, bell. `shows`: the answer shows a secret.
    async fn end(
        &self,
        mut tx: Tx,
        who: &Principal,
        info: &RequestInfo,
        row: i64,
        (action, status): (&str, u16),
        shows: bool,
    ) -> Result<Webhook, Error> {
        let id = public_id(row);
        if let Some(key) = info.idempotency.as_ref().filter(|_| shows) {
            idempotency_created(&mut tx, who.workspace_id, key, &id).await?;
        }
        audit_insert(&mut tx, who, info, entry(action, &id, status), self.now()).await?;
        let webhook = webhook_in(&mut tx, who.workspace_id, row).await?.ok_or_else(unknown)?;
        commit(tx).await?;
        self.ring_webhooks();
        Ok(webhook)
    }

    fn checked_url(&self, url: &str) -> Result<String, Error> {
        let checked = self.settings.webhooks.guard.url(url);
        checked.map(String::from).map_err(|why| Error::field("body", "url", "value_error", why))
    }

    fn wrap(&self, uuid: &str, secret: &str) -> Result<String, Error> {
        self.keys.webhooks.wrap(&bound_to(uuid), secret.as_bytes()).map(hex::encode).map_err(Error::internal)
    }

    fn unwrap(&self, uuid: &str, wrapped: &str) -> Result<Zeroizing<String>, Error> {
        let wrapped = hex::decode(wrapped).map_err(Error::internal)?;
        let clear = self.keys.webhooks.unwrap(&bound_to(uuid), &wrapped).map_err(Error::internal)?;
        let text = std::str::from_utf8(&clear).map_err(Error::internal)?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

fn bound_to(uuid: &str) -> String {
    format!("webhook {uuid}")
}

fn entry<'a>(action: &'a str, id: &'a str, status_code: u16) -> audit::Entry<'a> {
    audit::Entry { action, target_type: "webhook", target_id: id, operation_id: None, status_code }
}

fn fresh_secret() -> Result<Zeroizing<String>, Error> {
    let random = Zeroizing::new(holdfast_trust::random::<32>().map_err(Error::internal)?);
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
    Ok(Zeroizing::new(format!("{SECRET_PREFIX}{}", text.as_str())))
}

fn checked_secret(text: &str) -> Result<Zeroizing<String>, Error> {
    if SECRET_LENGTH.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(Zeroizing::new(text.to_owned()));
    }
    let why = "must be 16 to 256 visible ASCII characters, or left out";
    Err(Error::field("body", "secret", "string_pattern_mismatch", why))
}

fn checked_name(name: Option<&str>) -> Result<Option<String>, Error> {
    let Some(name) = name.map(str::trim).filter(|name| !name.is_empty()) else { return Ok(None) };
    if name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        let why = format!("must have at most {LONGEST_NAME} characters, none of them a control character");
        return Err(Error::field("body", "name", "string_too_long", why));
    }
    Ok(Some(name.to_owned()))
}

/// The names as JSON, each once.
fn checked_events(names: &[String]) -> Result<String, Error> {
    let wrong = |kind: &str, why: String| Error::field("body", "events", kind, why);
    if names.is_empty() {
        return Err(wrong("too_short", "must name at least one event".to_owned()));
    }
    let mut all = BTreeSet::new();
    for name in names {
        if Event::parse(name).is_none() {
            let known: Vec<&str> = Event::ALL.iter().map(|event| event.name()).collect();
            let name: String = name.chars().take(100).collect();
            return Err(wrong("enum", format!("\"{name}\" is no event; there are {}", known.join(", "))));
        }
        all.insert(name.as_str());
    }
    serde_json::to_string(&all).map_err(Error::internal)
}
