//! How long a mutation takes to be accepted, that is, to be durable and answered.
//!
//! The one rule: the same client, connection and machine for every request, and every request really is accepted: its
//! operation is over before the CVM is asked again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_harness::operation;
use holdfast_harness::server::{Options, Server};
use serde_json::json;

use super::stats::Samples;
use crate::ui;

const CVMS: usize = 20;
const ROUNDS: usize = 50;
const COMPOSE: &str = "services:\n  app:\n    image: hello\n";

pub struct Accept {
    /// `POST /cvms/{id}/stop` and `/start`.
    pub power: Samples,
    /// `POST /cvms`.
    pub create: Samples,
    /// `GET /healthz`, for what a request costs without a transaction.
    pub floor: Samples,
}

pub fn measure(binary: &Path, folder: &Path) -> Result<Accept> {
    let options = Options::new(binary, folder).args(["--hypervisor", "simulated", "--simulated-step-ms", "1"]);
    let mut server = Server::start(options)?;
    let client = server.client()?;
    let limit = Duration::from_secs(30);
    let (mut create, mut power, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    let mut cvms = Vec::new();
    for number in 0..CVMS {
        let provisioned =
            client.provision(&format!("bench-{number}"), COMPOSE, &json!({"instance_type": "tdx.small"}))?.ok()?;
        let start = Instant::now();
        let answer = client.commit(&provisioned, None)?;
        create.push(milliseconds(start));
        cvms.push(answer.ok()?["vm_uuid"].as_str().unwrap_or_default().to_owned());
    }
    for cvm in &cvms {
        operation::settle(&client, cvm, limit)?;
    }
    for round in 0..ROUNDS {
        let verb = if round % 2 == 0 { "stop" } else { "start" };
        for cvm in &cvms {
            let start = Instant::now();
            client.send("GET", "/healthz", &[], None)?;
            floor.push(milliseconds(start));
            let start = Instant::now();
            let answer = client.post(&format!("/api/v1/cvms/{cvm}/{verb}"), None)?;
            power.push(milliseconds(start));
            answer.ok()?;
        }
        for cvm in &cvms {
            operation::settle(&client, cvm, limit)?;
        }
    }
    server.stop()?;
    let accept = Accept { power: Samples::new(power), create: Samples::new(create), floor: Samples::new(floor) };
    ui::say(format!(
        "  {} power operations: p50 {:.1} ms, p99 {:.1} ms",
        CVMS * ROUNDS,
        accept.power.median(),
        accept.power.percentile(99.0)
    ));
    Ok(accept)
}

pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
