//! The list of containers, as `docker ps --all` has it, and the app of runner `bash` as if it were one.

use std::time::Duration;

use holdfast_model::guest::Container;
use serde::Deserialize;

use crate::{engine, runner};

/// More than this many are cut off: the list is one line of the protocol.
const MOST: usize = 500;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    #[serde(default)]
    command: String,
    created: i64,
    state: String,
    status: String,
}

/// All containers of the VM; empty before docker runs.
pub fn list() -> Result<Vec<Container>, String> {
    if let Some(script) = runner::script_as_container() {
        return Ok(vec![script]);
    }
    let answer = match engine::request("GET", "/containers/json?all=1", Duration::from_secs(20)) {
        Ok(answer) => answer,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(format!("docker: {e}")),
    };
    if answer.status != 200 {
        return Err(answer.error_message());
    }
    let text = answer.text().map_err(|e| format!("docker: {e}"))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Container>, String> {
    let listed: Vec<Listed> = serde_json::from_str(text).map_err(|e| format!("docker: {e}"))?;
    let cut = |text: String| text.chars().take(256).collect::<String>();
    let containers = listed.into_iter().take(MOST).map(|c| Container {
        id: c.id,
        names: c.names,
        image: cut(c.image),
        image_id: c.image_id,
        command: cut(c.command),
        created: c.created,
        state: c.state,
        status: c.status,
    });
    Ok(containers.collect())
}

/// The id of the one container of a compose service, so that logs can be asked for by the name in the compose file.
pub fn of_service(service: &str) -> Option<String> {
    let filter = serde_json::json!({ "label": [format!("com.docker.compose.service={service}")] }).to_string();
    let path = format!("/containers/json?all=1&filters={}", engine::percent_encode(&filter));
    let answer = engine::request("GET", &path, Duration::from_secs(20)).ok().filter(|a| a.status == 200)?;
    parse(&answer.text().ok()?).ok()?.into_iter().next().map(|c| c.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_answers() {
        let text = r#"[{"Id":"ab","Names":["/x-web-1"],"Image":"holdfast/hello:latest","ImageID":"sha256:cd","Command":"/start.sh",
            "Created":1750000000,"Ports":[],"Labels":{},"State":"running","Status":"Up 2 seconds","HostConfig":{}}]"#;
        let list = parse(text).unwrap();
        assert_eq!(
            (list[0].names[0].as_str(), list[0].state.as_str(), list[0].created),
            ("/x-web-1", "running", 1_750_000_000)
        );
        assert!(parse("{}").is_err());
    }
}
