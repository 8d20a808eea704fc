//! Accepting an invitation. The Phala surface makes them and has no route for this.
//!
//! The one rule: the code is in the body, where no log of paths has it.

use axum::extract::State;
use holdfast_control::people::workspace_id;
use holdfast_model::access::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Own, Whole};
use crate::json::Json;

#[derive(Deserialize, ToSchema)]
pub struct AcceptRequest {
    /// `hfinv_...`
    code: String,
}

/// A workspace that the caller belongs to now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Joined {
    /// `wks_...`
    pub workspace: String,
    pub slug: String,
    pub name: String,
    /// Their role in it.
    pub role: String,
}

/// Accept an invitation
///
/// Makes the caller a member of the workspace, whichever their key belongs to; for that workspace they then need a key of
/// it. A code with an address is used up by that, a shareable one is not.
#[utoipa::path(post, path = "/holdfast/v1/invitations/accept", tag = "People", security(("key" = []), ("bearer" = [])),
    request_body = AcceptRequest, responses(
    (status = 200, body = Joined),
    (status = 401, description = "No valid API key"),
    (status = 404, description = "There is no such invitation"),
    (status = 409, description = "It is over, or the caller is a member already"),
    (status = 422, description = "The body is not valid"),
))]
pub async fn accept(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
    Body(request): Body<AcceptRequest>,
) -> Result<Json<Joined>, Failure> {
    let joined = app.control.invitation_accept(&caller.who, &info, &request.code).await?;
    Ok(Json(Joined {
        workspace: workspace_id(joined.id),
        slug: joined.slug,
        name: joined.name,
        role: Role::parse(&joined.role).map_or(joined.role, |role| role.word().to_owned()),
    }))
}
