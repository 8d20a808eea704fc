//! Instance types and guest images on offer.
//!
//! The one rule: a type is a name for a size and nothing else. A CVM keeps the size that it was given, so a type may be
//! changed or taken from the list without anything happening to the CVMs that were made by its name.

use holdfast_model::error::{Code, Error};
use holdfast_model::image::ImageInfo;
use holdfast_store::nodes::Node;
use serde::Deserialize;

/// A size that a CVM can be asked for by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceType {
    pub id: String,
    pub family: String,
    /// For people, like the description.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub vcpu: i64,
    pub memory_mb: i64,
    /// Of a CVM whose owner names no size of its disk.
    #[serde(default = "disk_default")]
    pub disk_gb: i64,
    /// A decimal number as text.
    #[serde(default = "rate_default")]
    pub hourly_rate: String,
}

fn disk_default() -> i64 {
    20
}

fn rate_default() -> String {
    "0".to_owned()
}

/// What an operator who names no file offers.
const DEFAULT: &str = include_str!("../../../instance-types.default.toml");

/// The instance types on offer, in the order in which they are shown. Never empty; the ids are unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue(Vec<InstanceType>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "type")]
    types: Vec<InstanceType>,
}

impl Default for Catalogue {
    fn default() -> Self {
        // It is part of the program, and a test reads it.
        Self::parse(DEFAULT).unwrap_or_else(|_| Self(Vec::new()))
    }
}

impl Catalogue {
    /// Reads a file of the form of `instance-types.default.toml`. The error is one line that says what is wrong where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{line}{}", error.message().replace('\n', " "))
        })?;
        if file.types.is_empty() {
            return Err("there is no [[type]] in it".to_owned());
        }
        for (index, entry) in file.types.iter().enumerate() {
            check(entry).map_err(|why| format!("type {} (\"{}\"): {why}", index + 1, entry.id))?;
            if file.types[..index].iter().any(|before| before.id == entry.id) {
                return Err(format!("type {} (\"{}\"): there is one of this id before it", index + 1, entry.id));
            }
        }
        Ok(Self(file.types))
    }

    pub fn all(&self) -> &[InstanceType] {
        &self.0
    }

    /// The families, in the order in which they first appear.
    pub fn families(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for entry in &self.0 {
            if !names.contains(&entry.family.as_str()) {
                names.push(&entry.family);
            }
        }
        names
    }

    /// The type with this id.
    pub fn find(&self, id: &str) -> Result<&InstanceType, Error> {
        let found = self.0.iter().find(|entry| entry.id == id);
        found.ok_or_else(|| Error::new(Code::TypeNotFound, format!("There is no instance type \"{id}\".")))
    }

    /// What is meant by a request that names no type.
    pub fn first(&self) -> Result<&InstanceType, Error> {
        self.0.first().ok_or_else(|| Error::new(Code::TypeNotFound, "This server has no instance types."))
    }

    /// A type of exactly this size, if there is one.
    pub fn of_size(&self, vcpu: i64, memory_mb: i64) -> Option<&InstanceType> {
        self.0.iter().find(|entry| (entry.vcpu, entry.memory_mb) == (vcpu, memory_mb))
    }
}

fn check(entry: &InstanceType) -> Result<(), String> {
    let word = |text: &str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    for (key, text) in [("id", &entry.id), ("family", &entry.family)] {
        if !word(text) {
            return Err(format!("{key} must be 1 to 64 letters, digits, dots, dashes and underscores"));
        }
    }
    if entry.name.trim().is_empty() {
        return Err("name must not be empty".to_owned());
    }
    for (key, value, least) in
        [("vcpu", entry.vcpu, 1), ("memory_mb", entry.memory_mb, 512), ("disk_gb", entry.disk_gb, 1)]
    {
        if !(least..=i64::from(i32::MAX)).contains(&value) {
            return Err(format!("{key} = {value} is not at least {least}, or is more than any node has"));
        }
    }
    if !is_decimal(&entry.hourly_rate) {
        return Err(format!("hourly_rate \"{}\" is not a decimal number like \"0.058\"", entry.hourly_rate));
    }
    Ok(())
}

/// `12` or `0.058`: no sign, no exponent, at most 12 digits before and after the point.
fn is_decimal(text: &str) -> bool {
    let digits = |text: &str| (1..=12).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, part)) => digits(whole) && digits(part),
        None => digits(text),
    }
}

/// Images that some of these nodes offers, newest version first, each once.
pub fn images<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Result<Vec<ImageInfo>, Error> {
    let mut all = Vec::new();
    for node in nodes {
        all.extend(node.images()?);
    }
    all.sort_by(|a, b| version(&b.version).cmp(&version(&a.version)).then_with(|| a.name.cmp(&b.name)));
    all.dedup_by(|a, b| a.name == b.name);
    Ok(all)
}

/// `0.5.10` is newer than `0.5.9`.
fn version(text: &str) -> Vec<u64> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// The numbers of a version, as the Phala surface wants them.
pub fn version_numbers(text: &str) -> [u64; 3] {
    let parts = version(text);
    std::array::from_fn(|i| parts.get(i).copied().unwrap_or(0))
}

/// The image a CVM gets: the one that was named, else the newest.
pub fn image_choose(images: &[ImageInfo], named: Option<&str>, prefer_dev: bool) -> Result<ImageInfo, Error> {
    let chosen = match named {
        Some(name) => images.iter().find(|i| i.name == name),
        None => images.iter().find(|i| i.is_dev == prefer_dev).or(images.first()),
    };
    chosen.cloned().ok_or_else(|| {
        let message = match named {
            Some(name) => format!("There is no OS image \"{name}\" on any node."),
            None => "No node has an OS image yet.".to_owned(),
        };
        Error::new(Code::ImageNotFound, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_that_comes_with_the_server_can_be_read() {
        let catalogue = Catalogue::parse(DEFAULT).expect("the default");
        assert_eq!(catalogue, Catalogue::default());
        assert_eq!((catalogue.families(), catalogue.all().len()), (vec!["cpu"], 5));
        let small = catalogue.first().expect("a type");
        assert_eq!(
            (small.id.as_str(), small.vcpu, small.disk_gb, small.hourly_rate.as_str()),
            ("tdx.small", 1, 20, "0")
        );
        assert_eq!(catalogue.of_size(2, 4096).map(|t| t.id.as_str()), Some("tdx.medium"));
    }

    #[test]
    fn a_mistake_is_one_line_that_names_it() {
        let entry = |change: &str| {
            let mut lines: Vec<String> =
                ["id = \"a.1\"", "family = \"a\"", "name = \"A\"", "vcpu = 1", "memory_mb = 1024"]
                    .map(str::to_owned)
                    .into();
            let key = change.split(' ').next().unwrap_or_default();
            lines.retain(|line| !line.starts_with(&format!("{key} ")));
            lines.push(change.to_owned());
            format!("[[type]]\n{}\n", lines.join("\n"))
        };
        for (text, says) in [
            (String::new(), "type"),
            ("type = []".to_owned(), "no [[type]]"),
            (entry("id = \"a b\""), "id must be"),
            (entry("family = \"\""), "family must be"),
            (entry("name = \" \""), "name must not"),
            (entry("vcpu = 0"), "vcpu = 0"),
            (entry("memory_mb = 511"), "memory_mb = 511"),
            (entry("disk_gb = 99999999999"), "disk_gb"),
            (entry("hourly_rate = \"1,5\""), "hourly_rate"),
            (entry("hourly_rate = \"-1\""), "hourly_rate"),
            (entry("hourly_rate = 0.5"), "line 7"),
            (entry("gpus = 1"), "gpus"),
            (entry("disk_gb = 10") + &entry("disk_gb = 20"), "of this id"),
        ] {
            let error = Catalogue::parse(&text).expect_err(&text);
            assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
        }
        let good = Catalogue::parse(&entry("hourly_rate = \"0.058\"")).expect("valid");
        assert_eq!(good.find("a.1").expect("it is there").hourly_rate, "0.058");
        assert_eq!(good.find("a.2").expect_err("it is not").code, Code::TypeNotFound);
    }
}
