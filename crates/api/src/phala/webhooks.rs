//! `/workspace/webhooks`: whom a workspace tells of its events, and what became of each delivery.
//!
//! The one rule: a secret is whole in the answers of those who may manage webhooks and asked for it (created, revealed,
//! rotated), and masked in all others.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::webhooks::{MASKED_SECRET, Shown, Wanted, public_id};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::webhook_deliveries::Delivery;
use holdfast_store::webhooks::Webhook;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, ManageWebhooks, Params, Read, Whole};
use crate::json::Json;
use crate::phala::lenient::MaybeBody;

/// Deliveries of one answer at the most.
const LARGEST_PAGE: i64 = 200;

#[derive(Debug, Deserialize, ToSchema)]
pub struct WebhookCreateRequest {
    /// Where events are sent: https, and a public address unless the operator allows others.
    url: String,
    /// Names of events: `cvm.created`, `operation.failed`, ...
    events: Vec<String>,
    /// For people.
    #[schema(max_length = 100)]
    name: Option<String>,
    /// 16 to 256 visible ASCII characters; one is made when it is left out.
    secret: Option<String>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct WebhookUpdateRequest {
    url: Option<String>,
    events: Option<Vec<String>>,
    /// Empty: none.
    #[schema(max_length = 100)]
    name: Option<String>,
    /// One that is enabled again is told of what happens from then on.
    enabled: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookResponse {
    id: String,
    url: String,
    /// Whole in the answer that made it, else `whsec_****`.
    secret: String,
    events: Vec<String>,
    name: Option<String>,
    enabled: bool,
    /// Why the server disabled it by itself.
    disabled_reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl WebhookResponse {
    fn of(webhook: Webhook, secret: &str) -> Result<Self, Error> {
        Ok(Self {
            id: public_id(webhook.id),
            url: webhook.url,
            secret: secret.to_owned(),
            events: serde_json::from_str(&webhook.events).map_err(Error::internal)?,
            name: webhook.name,
            enabled: webhook.enabled,
            disabled_reason: webhook.disabled_reason,
            created_at: Timestamp(webhook.created_at),
            updated_at: Timestamp(webhook.updated_at),
        })
    }
}

#[derive(Serialize, ToSchema)]
pub struct WebhookSecretResponse {
    id: String,
    secret: String,
    /// Until then deliveries are signed with the secret before, too.
    #[schema(value_type = Option<String>, format = DateTime)]
    previous_secret_valid_until: Option<Timestamp>,
}

impl WebhookSecretResponse {
    fn of(shown: &Shown, now: Timestamp) -> Self {
        let until = shown.webhook.previous_until.map(Timestamp).filter(|until| *until > now);
        Self { id: public_id(shown.webhook.id), secret: shown.secret.to_string(), previous_secret_valid_until: until }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookDeliveryResponse {
    snowflake_id: i64,
    event_id: String,
    event_type: String,
    /// `pending`, `success` or `failed`.
    status: String,
    attempts: i64,
    request_url: String,
    /// Of the last answer; 0: there was none.
    response_status: i64,
    error_message: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    delivered_at: Option<Timestamp>,
    duration_ms: i64,
    /// Of a resend: the event that it repeats, and that its request carries.
    original_event_id: String,
}

impl From<Delivery> for WebhookDeliveryResponse {
    fn from(delivery: Delivery) -> Self {
        Self {
            snowflake_id: delivery.id,
            event_id: delivery.event_id,
            event_type: delivery.event_type,
            status: delivery.status,
            attempts: delivery.attempts,
            request_url: delivery.request_url,
            response_status: delivery.response_status,
            error_message: delivery.error_message,
            created_at: Timestamp(delivery.created_at),
            delivered_at: delivery.delivered_at.map(Timestamp),
            duration_ms: delivery.duration_ms,
            original_event_id: delivery.original_event_id,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookStatsResponse {
    total: i64,
    success_count: i64,
    failed_count: i64,
    /// Successes among those that are over, 0 to 1; 1 while there are none.
    success_rate: f64,
    avg_duration_ms: i64,
    max_duration_ms: i64,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_delivery_at: Option<Timestamp>,
}

/// List webhooks
///
/// Secrets are masked.
#[utoipa::path(get, path = "/api/v1/workspace/webhooks", tag = "Webhooks", operation_id = "webhooks_list",
    responses((status = 200, body = Vec<WebhookResponse>)))]
async fn list(State(app): State<App>, caller: Caller<Whole<Read>>) -> Result<Json<Vec<WebhookResponse>>, Failure> {
    let all = app.control.webhooks(&caller.who).await?.into_iter();
    Ok(Json(all.map(|webhook| WebhookResponse::of(webhook, MASKED_SECRET)).collect::<Result<_, _>>()?))
}

/// Create a webhook
///
/// It is told of what happens from now on. The answer shows its secret; later answers mask it.
#[utoipa::path(post, path = "/api/v1/workspace/webhooks", tag = "Webhooks", operation_id = "webhooks_create",
    request_body = WebhookCreateRequest, responses((status = 201, body = WebhookResponse),
    (status = 409, description = "The workspace has as many webhooks as it may have, or this request was carried out already")))]
async fn create(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Body(request): Body<WebhookCreateRequest>,
) -> Result<(StatusCode, Json<WebhookResponse>), Failure> {
    let what = (request.url.as_str(), request.name.as_deref(), request.events.as_slice());
    let secret = request.secret.as_deref().filter(|secret| !secret.is_empty());
    let made = app.control.webhook_create(&caller.who, &info, what, secret).await?;
    Ok((StatusCode::CREATED, Json(WebhookResponse::of(made.webhook, &made.secret)?)))
}

/// Look at a webhook
#[utoipa::path(get, path = "/api/v1/workspace/webhooks/{webhook_id}", tag = "Webhooks", operation_id = "webhooks_get",
    params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 200, body = WebhookResponse), (status = 404, description = "Webhook not found")))]
async fn get(
    State(app): State<App>,
    caller: Caller<Whole<Read>>,
    Path(id): Path<String>,
) -> Result<Json<WebhookResponse>, Failure> {
    let webhook = app.control.webhook(&caller.who, &id).await?;
    Ok(Json(WebhookResponse::of(webhook, MASKED_SECRET)?))
}

/// Change a webhook
///
/// What is left out or null stays as it is.
#[utoipa::path(put, path = "/api/v1/workspace/webhooks/{webhook_id}", tag = "Webhooks", operation_id = "webhooks_update",
    params(("webhook_id" = String, Path, description = "`whk_` id")), request_body = WebhookUpdateRequest,
    responses((status = 200, body = WebhookResponse), (status = 404, description = "Webhook not found")))]
async fn update(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path(id): Path<String>,
    MaybeBody(request): MaybeBody<WebhookUpdateRequest>,
) -> Result<Json<WebhookResponse>, Failure> {
    let request = request.unwrap_or_default();
    let wanted =
        Wanted { url: request.url, name: request.name.map(Some), events: request.events, enabled: request.enabled };
    let webhook = app.control.webhook_update(&caller.who, &info, &id, wanted).await?;
    Ok(Json(WebhookResponse::of(webhook, MASKED_SECRET)?))
}

/// Delete a webhook
///
/// With the history of its deliveries.
#[utoipa::path(delete, path = "/api/v1/workspace/webhooks/{webhook_id}", tag = "Webhooks", operation_id = "webhooks_delete",
    params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 204, description = "Deleted"), (status = 404, description = "Webhook not found")))]
async fn delete(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.webhook_delete(&caller.who, &info, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send a test event
///
/// `webhook.test`, whatever the webhook is told of otherwise. The answer is its delivery, which is sent soon.
#[utoipa::path(post, path = "/api/v1/workspace/webhooks/{webhook_id}/test", tag = "Webhooks", operation_id = "webhooks_test",
    params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 200, body = WebhookDeliveryResponse), (status = 404, description = "Webhook not found"),
        (status = 409, description = "The webhook is disabled")))]
async fn test(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<WebhookDeliveryResponse>, Failure> {
    Ok(Json(app.control.webhook_test(&caller.who, &info, &id).await?.into()))
}

/// Show a webhook's secret
#[utoipa::path(post, path = "/api/v1/workspace/webhooks/{webhook_id}/reveal-secret", tag = "Webhooks",
    operation_id = "webhooks_reveal_secret", params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 200, body = WebhookSecretResponse), (status = 404, description = "Webhook not found")))]
async fn reveal_secret(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<WebhookSecretResponse>, Failure> {
    let shown = app.control.webhook_reveal(&caller.who, &info, &id).await?;
    Ok(Json(WebhookSecretResponse::of(&shown, app.control.now())))
}

/// Give a webhook another secret
///
/// The one before stays valid for a day: deliveries are signed with both, and a receiver that knows only one of them believes
/// them all the same.
#[utoipa::path(post, path = "/api/v1/workspace/webhooks/{webhook_id}/rotate-secret", tag = "Webhooks",
    operation_id = "webhooks_rotate_secret", params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 200, body = WebhookSecretResponse), (status = 404, description = "Webhook not found"),
        (status = 409, description = "This request was carried out already")))]
async fn rotate_secret(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<Json<WebhookSecretResponse>, Failure> {
    let shown = app.control.webhook_rotate(&caller.who, &info, &id).await?;
    Ok(Json(WebhookSecretResponse::of(&shown, app.control.now())))
}

/// List a webhook's deliveries
///
/// Newest first; those that wait to be sent again are among them.
#[utoipa::path(get, path = "/api/v1/workspace/webhooks/{webhook_id}/deliveries", tag = "Webhooks",
    operation_id = "webhooks_deliveries", params(("webhook_id" = String, Path, description = "`whk_` id"),
        ("limit" = Option<i64>, Query, description = "1 to 200; 50 unless told"),
        ("offset" = Option<i64>, Query, description = "How many newer ones to pass over")),
    responses((status = 200, body = Vec<WebhookDeliveryResponse>), (status = 404, description = "Webhook not found")))]
async fn deliveries(
    State(app): State<App>,
    caller: Caller<Whole<Read>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Vec<WebhookDeliveryResponse>>, Failure> {
    let limit = params.integer("limit", 1, LARGEST_PAGE)?.unwrap_or(50);
    let offset = params.integer("offset", 0, i64::from(i32::MAX))?.unwrap_or(0);
    let page = app.control.webhook_deliveries(&caller.who, &id, limit, offset).await?;
    Ok(Json(page.into_iter().map(Into::into).collect()))
}

/// Send an event again
///
/// A delivery of its own, with the same body under the id of the event that it repeats.
#[utoipa::path(post, path = "/api/v1/workspace/webhooks/{webhook_id}/deliveries/{event_id}/resend", tag = "Webhooks",
    operation_id = "webhooks_resend", params(("webhook_id" = String, Path, description = "`whk_` id"),
        ("event_id" = String, Path, description = "`evt_` id of a delivery")),
    responses((status = 200, body = WebhookDeliveryResponse), (status = 404, description = "Webhook or delivery not found"),
        (status = 409, description = "The webhook is disabled")))]
async fn resend(
    State(app): State<App>,
    caller: Caller<ManageWebhooks>,
    Info(info): Info,
    Path((id, event)): Path<(String, String)>,
) -> Result<Json<WebhookDeliveryResponse>, Failure> {
    Ok(Json(app.control.webhook_resend(&caller.who, &info, &id, &event).await?.into()))
}

/// Figures of a webhook's deliveries
///
/// Of those that are kept.
#[utoipa::path(get, path = "/api/v1/workspace/webhooks/{webhook_id}/stats", tag = "Webhooks", operation_id = "webhooks_stats",
    params(("webhook_id" = String, Path, description = "`whk_` id")),
    responses((status = 200, body = WebhookStatsResponse), (status = 404, description = "Webhook not found")))]
async fn stats(
    State(app): State<App>,
    caller: Caller<Whole<Read>>,
    Path(id): Path<String>,
) -> Result<Json<WebhookStatsResponse>, Failure> {
    let stats = app.control.webhook_stats(&caller.who, &id).await?;
    let over = stats.success + stats.failed;
    let rate = if over == 0 { 1.0 } else { stats.success as f64 / over as f64 };
    Ok(Json(WebhookStatsResponse {
        total: stats.total,
        success_count: stats.success,
        failed_count: stats.failed,
        success_rate: rate,
        avg_duration_ms: stats.mean_ms,
        max_duration_ms: stats.longest_ms,
        last_delivery_at: stats.last_at.map(Timestamp),
    }))
}

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(test))
        .routes(routes!(reveal_secret))
        .routes(routes!(rotate_secret))
        .routes(routes!(deliveries))
        .routes(routes!(resend))
        .routes(routes!(stats))
}
