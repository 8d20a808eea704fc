//! Webhooks to receivers that speak TLS, as nearly all do.
//!
//! The one rule: a message goes only to who has a certificate for the URL's name from an authority that is trusted. Whoever
//! has not learns nothing of it, and the delivery says what is wrong.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use holdfast_control::certificates::authorities;
use holdfast_control::webhooks::guard::{Looking, Lookup};
use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Server, V2026, until};
use crate::tls::{Authority, acceptor, authority};
use crate::webhooks_receivers::{Receiver, deliveries, delivering, webhook};

const NAME: &str = "hooks.example";

/// Every name is this host's.
struct Here;

impl Lookup for Here {
    fn lookup(&self, _: String) -> Looking {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

/// A receiver with a certificate for this name, by this authority or by nobody but itself, which `change` may spoil.
async fn receiver(
    name: &str,
    authority: Option<&Authority>,
    change: impl FnOnce(&mut CertificateParams),
) -> (Arc<Receiver>, String) {
    let (receiver, at) = Receiver::start_as("127.0.0.1:0", Some(acceptor(name, authority, change))).await;
    (receiver, format!("https://{NAME}:{}/ok", at.port()))
}

/// One that answers in plain text, whatever it is sent.
async fn without_tls() -> (Arc<Receiver>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://{NAME}:{}/ok", listener.local_addr().expect("an address").port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream
                .write_all(
                    b"HTTP/1.1 400 Speak up
content-length: 0

",
                )
                .await;
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    (Arc::default(), url)
}

/// What became of a test event to this URL.
async fn told(server: &Server, url: &str) -> Value {
    let (id, _) = webhook(server, url, &["cvm.created"]).await;
    server.at(V2026).post(&format!("/workspace/webhooks/{id}/test"), &Value::Null).await.expect(200);
    until(url, async || deliveries(server, &id).await[0]["attempts"] == 1).await;
    deliveries(server, &id).await.remove(0)
}

#[tokio::test]
async fn a_receiver_is_who_its_certificate_says() {
    let ours = authority("Ours");
    let trusted = authorities(ours.pem().as_bytes()).expect("a certificate");
    let (server, _) = delivering(Arc::new(Here), "127.0.0.1/32", trusted).await;
    let (good, url) = receiver(NAME, Some(&ours), |_| ()).await;
    let delivered = told(&server, &url).await;
    assert_eq!((&delivered["status"], &delivered["response_status"]), (&json!("success"), &json!(200)), "{delivered}");
    assert_eq!((good.at("/ok").len(), &delivered["error_message"]), (1, &json!("")));

    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let to_come = |params: &mut CertificateParams| params.not_before = date_time_ymd(3000, 1, 1);
    let a_ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let theirs = authority("Theirs");
    let untrusted = "The receiver's certificate is of no authority that this server trusts.";
    let cases = [
        (receiver("other.example", Some(&ours), |_| ()).await, "The receiver's certificate is for another name."),
        (receiver(NAME, None, |_| ()).await, untrusted),
        (receiver(NAME, Some(&theirs), |_| ()).await, untrusted),
        (receiver(NAME, Some(&ours), past).await, "The receiver's certificate has expired."),
        (receiver(NAME, Some(&ours), to_come).await, "The receiver's certificate is not valid yet."),
        (receiver(NAME, Some(&ours), a_ca).await, "The receiver's certificate cannot be trusted."),
        (without_tls().await, "No TLS connection could be made."),
    ];
    for ((receiver, url), error) in &cases {
        let refused = told(&server, url).await;
        assert_eq!((&refused["error_message"], &refused["status"]), (&json!(error), &json!("pending")), "{refused}");
        assert_eq!(refused["response_status"], 0);
        assert!(receiver.at("/ok").is_empty(), "{error}: it was told all the same");
    }
    // Without the operator's word the good one is a stranger too.
    let (strict, _) = delivering(Arc::new(Here), "127.0.0.1/32", Vec::new()).await;
    assert_eq!(told(&strict, &url).await["error_message"], untrusted);
    assert_eq!(good.at("/ok").len(), 1);
}
