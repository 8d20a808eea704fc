//! The socket that a node keeps open for what cannot be polled: logs, container lists and looks at machines.

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use holdfast_control::streams::Attachment;
use holdfast_model::node::STREAM_FRAME;
use tokio::time::{Duration, Instant, interval, timeout};

use super::{NodeCaller, session};
use crate::App;
use crate::error::Failure;
use crate::extract::Params;

/// A node that has not answered a ping for this long is gone.
const SILENCE: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(10);
/// A frame that cannot be sent for this long means that the node is gone.
const SEND_TIME: Duration = Duration::from_secs(10);

pub async fn open(
    State(app): State<App>,
    NodeCaller(token): NodeCaller,
    params: Params,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    let node = app.control.store.node_session(token, session(&params)?).await?;
    let hub = app.control.streams.clone();
    Ok(upgrade.max_message_size(STREAM_FRAME).on_upgrade(move |socket| serve(socket, hub.attach(node))))
}

async fn serve(socket: WebSocket, mut node: Attachment) {
    let (mut out, mut frames) = socket.split();
    let mut ping = interval(PING_EVERY);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            request = node.next_request() => {
                let Some(request) = request else { return };
                let Ok(text) = serde_json::to_string(&request) else { return };
                Message::Text(text.into())
            }
            frame = frames.next() => {
                heard = Instant::now();
                match frame {
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(reply) => node.reply(reply),
                        Err(error) => tracing::warn!(%error, "a node sent a frame that cannot be read"),
                    },
                    Some(Ok(Message::Binary(data))) => {
                        if !node.data(data) {
                            tracing::warn!("a node sent a data frame without a head");
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                }
                continue;
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE {
                    return;
                }
                Message::Ping(Default::default())
            }
        };
        if !matches!(timeout(SEND_TIME, out.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
}
