//! Puts the guest agent into the binary, when the build names one: then `holdfast image build` needs nothing beside it.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=HOLDFAST_GUEST_AGENT");
    let agent = std::env::var_os("HOLDFAST_GUEST_AGENT").map(PathBuf::from);
    let code = match &agent {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", path.display());
            format!("Some(include_bytes!({:?}))", path.display().to_string())
        }
        None => "None".to_owned(),
    };
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("agent.rs");
    let text = format!("/// The guest agent, if it was built in.\npub const AGENT: Option<&[u8]> = {code};\n");
    if let Err(error) = std::fs::write(&out, text) {
        println!("cargo:warning=cannot write {}: {error}", out.display());
    }
}
