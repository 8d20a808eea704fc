//! The committed OpenAPI documents are what the code serves.

#[test]
fn committed_documents_are_current() {
    for (name, document) in holdfast_api::documents() {
        let path = format!("{}/../../openapi/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let current = document.to_pretty_json().expect("a document") + "\n";
        assert!(
            committed == current,
            "openapi/{name}.json is not current; run `cargo xtask openapi` and look at the diff"
        );
        assert!(current.contains("\"openapi\": \"3.1"), "{name} is OpenAPI 3.1");
    }
}
