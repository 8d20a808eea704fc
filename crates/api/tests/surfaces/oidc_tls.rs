//! An identity provider over https, with a certificate of the operator's own authority.
//!
//! The one rule: a provider whose certificate is not believed is asked for nothing, and whoever wanted to sign in reads what is
//! wrong with it.

use std::sync::atomic::Ordering;

use axum::serve::Listener;
use holdfast_control::Settings;
use holdfast_control::certificates::authorities;
use holdfast_control::oidc::Options;
use rcgen::{CertificateParams, date_time_ymd};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::oidc::{JSON, Liar, begun, ended, get, options};
use crate::support::Server;
use crate::tls::{Authority, acceptor, authority};

struct Secured(TcpListener, TlsAcceptor);

impl Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.0).await;
            // Whoever does not believe the certificate ends here.
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

async fn provider(name: &str, authority: Option<&Authority>, change: impl FnOnce(&mut CertificateParams)) -> Liar {
    let acceptor = acceptor(name, authority, change);
    Liar::start_on("https", |listener| Secured(listener, acceptor)).await
}

/// A server that believes this authority besides those of the host.
async fn trusting(issuer: &str, authority: Option<&Authority>) -> Server {
    let authorities = authority.map(|one| authorities(one.pem().as_bytes()).expect("a certificate"));
    let oidc = Options { authorities: authorities.unwrap_or_default(), ..options(issuer) };
    Server::start_with(Settings { oidc: Some(oidc), ..Settings::default() }).await
}

#[tokio::test]
async fn a_provider_is_who_its_certificate_says() {
    let (ours, theirs) = (authority("Ours"), authority("Theirs"));
    let good = provider("127.0.0.1", Some(&ours), |_| ()).await;
    let server = trusting(&good.issuer, Some(&ours)).await;
    // Its description, its keys and its answer to a code all come the same way.
    let (cookie, state) = begun(&server).await;
    assert_eq!(ended(&server, &cookie, &format!("code=c&state={state}")).await, (502, "HF-0424".to_owned()));
    assert_eq!((good.described.load(Ordering::SeqCst), good.asked.load(Ordering::SeqCst)), (1, 1));

    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let untrusted = "its certificate is of no authority that this server trusts.";
    let cases = [
        (provider("127.0.0.1", Some(&theirs), |_| ()).await, Some(&ours), untrusted),
        (provider("127.0.0.1", None, |_| ()).await, Some(&ours), untrusted),
        (provider("127.0.0.1", Some(&ours), |_| ()).await, None, untrusted),
        (provider("id.example", Some(&ours), |_| ()).await, Some(&ours), "its certificate is for another name."),
        (provider("127.0.0.1", Some(&ours), past).await, Some(&ours), "its certificate has expired."),
    ];
    for (provider, trusted, why) in &cases {
        let server = trusting(&provider.issuer, *trusted).await;
        let body = get(&server, "/auth/oidc/login", "", JSON).await.expect(503);
        assert_eq!(body["error"]["code"], "HF-0423");
        assert_eq!(body["error"]["message"], format!("The identity provider cannot be reached: {why}"));
        assert_eq!(provider.described.load(Ordering::SeqCst), 0, "{why} It was asked all the same.");
    }
}
