//! What the server takes for GitHub: profiles with keys, on a real port, and the ways in which a network fails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// What is answered for a profile.
#[derive(Debug, Clone)]
pub enum Profile {
    Keys(String),
    Status(u16),
    /// To this address.
    Redirect(String),
    /// Nothing, for ever.
    Silence,
    /// Bytes without end.
    Endless,
    NoText,
}

type Profiles = Arc<Mutex<HashMap<String, Profile>>>;

pub struct Github {
    pub url: String,
    profiles: Profiles,
    _task: AbortOnDropHandle<()>,
}

impl Github {
    pub async fn start() -> Self {
        // The client is made for TLS too, and TLS needs to know by what.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let profiles = Profiles::default();
        let app = axum::Router::new().fallback(answer).with_state(profiles.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, profiles, _task: AbortOnDropHandle::new(task) }
    }

    pub fn has(&self, name: &str, keys: &str) {
        self.is(name, Profile::Keys(keys.to_owned()));
    }

    pub fn is(&self, name: &str, profile: Profile) {
        self.profiles.lock().expect("no panic").insert(name.to_owned(), profile);
    }
}

async fn answer(State(profiles): State<Profiles>, uri: Uri) -> Response {
    let name = uri.path().trim_start_matches('/').strip_suffix(".keys").unwrap_or_default();
    let profile = profiles.lock().expect("no panic").get(name).cloned();
    match profile.unwrap_or(Profile::Status(404)) {
        Profile::Keys(text) => text.into_response(),
        Profile::Status(status) => {
            (axum::http::StatusCode::from_u16(status).expect("a status"), "a page").into_response()
        }
        Profile::Redirect(to) => (axum::http::StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response(),
        Profile::Silence => std::future::pending().await,
        Profile::Endless => {
            let piece = Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'a'; 4096]));
            Body::from_stream(futures_util::stream::repeat_with(move || piece.clone())).into_response()
        }
        Profile::NoText => Bytes::from_static(b"ssh-ed25519 \xff\xfe").into_response(),
    }
}
