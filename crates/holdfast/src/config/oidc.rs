//! The `oidc_` keys: the identity provider that people can sign in through.
//!
//! The one rule: either all that a login needs is said, or nothing of it; half of it stops the start with one line. The secret
//! is in no such line.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use holdfast_control::oidc::{Claims, Newcomers, Options, Secret};
use holdfast_model::access::Role;

use super::{Config, absolute, authorities_of};

/// One request to the provider may take this long.
const PATIENCE: Duration = Duration::from_secs(10);

impl Config {
    /// What the keys say, but for the secret and the authorities.
    pub(super) fn oidc_checked(&self) -> Result<Option<Options>> {
        if self.oidc_issuer.is_empty() {
            let set = [
                ("oidc_client_id", !self.oidc_client_id.is_empty()),
                ("oidc_client_secret", !self.oidc_client_secret.is_empty()),
                ("oidc_client_secret_file", !self.oidc_client_secret_file.is_empty()),
                ("oidc_ca_file", !self.oidc_ca_file.is_empty()),
                ("oidc_link_email", self.oidc_link_email),
                ("oidc_create_users", self.oidc_create_users),
            ];
            return match set.into_iter().find(|(_, is_set)| *is_set) {
                Some((key, _)) => Err(anyhow!("{key} is set, and oidc_issuer is not")),
                None => Ok(None),
            };
        }
        let url = url::Url::parse(&self.oidc_issuer).context("oidc_issuer")?;
        let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let secured = url.scheme() == "https" || (url.scheme() == "http" && loopback);
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if !secured || !plain || url.password().is_some() {
            bail!("oidc_issuer is not an https URL without a query; http is for a provider on this host");
        }
        for (key, text) in [
            ("oidc_client_id", &self.oidc_client_id),
            ("oidc_name", &self.oidc_name),
            ("oidc_username_claim", &self.oidc_username_claim),
            ("oidc_email_claim", &self.oidc_email_claim),
        ] {
            if text.trim().is_empty() {
                bail!("oidc_issuer is set, and {key} is empty");
            }
        }
        if !self.oidc_client_secret.is_empty() && !self.oidc_client_secret_file.is_empty() {
            bail!("oidc_client_secret and oidc_client_secret_file are both set");
        }
        if self.public_url.is_empty() && self.listen.ip().is_unspecified() {
            bail!("oidc_issuer needs public_url: the provider sends people back there");
        }
        let role = match Role::parse(&self.oidc_role) {
            Some(role @ (Role::Reader | Role::Member | Role::Admin)) => role,
            _ => bail!("oidc_role \"{}\" is not reader, member or admin", self.oidc_role),
        };
        let newcomers = match (self.oidc_create_users, self.oidc_workspace.as_str()) {
            (true, "") => bail!("oidc_create_users needs oidc_workspace: new users have to belong somewhere"),
            (false, "") => None,
            (false, _) => bail!("oidc_workspace is set, and oidc_create_users is not"),
            (true, slug) => Some(Newcomers { workspace: slug.to_owned(), role }),
        };
        let verified = self.oidc_email_verified_claim.trim();
        Ok(Some(Options {
            issuer: self.oidc_issuer.clone(),
            client_id: self.oidc_client_id.clone(),
            client_secret: None,
            authorities: Vec::new(),
            name: self.oidc_name.clone(),
            // The login asks for it anyway.
            scopes: self.oidc_scopes.split_whitespace().filter(|s| *s != "openid").map(str::to_owned).collect(),
            claims: Claims {
                username: self.oidc_username_claim.clone(),
                email: self.oidc_email_claim.clone(),
                email_verified: (!verified.is_empty()).then(|| verified.to_owned()),
            },
            link_email: self.oidc_link_email,
            newcomers,
            patience: PATIENCE,
        }))
    }

    /// The identity provider; `None`: there is none. Reads the files of the secret and of the authorities.
    pub fn oidc(&self) -> Result<Option<Options>> {
        let Some(options) = self.oidc_checked()? else { return Ok(None) };
        let secret = if self.oidc_client_secret_file.is_empty() {
            self.oidc_client_secret.clone()
        } else {
            let file = absolute(&self.oidc_client_secret_file)?;
            let text = std::fs::read_to_string(&file);
            let text = text.with_context(|| format!("oidc_client_secret_file {}", file.display()))?;
            let secret = Secret::from(text.trim().to_owned());
            if secret.is_empty() {
                bail!("oidc_client_secret_file {} is empty", file.display());
            }
            secret
        };
        let authorities = authorities_of("oidc_ca_file", &self.oidc_ca_file)?;
        Ok(Some(Options { client_secret: (!secret.is_empty()).then_some(secret), authorities, ..options }))
    }

    /// The issuer of the configuration, for commands that name one.
    pub fn oidc_issuer(&self) -> Option<&str> {
        (!self.oidc_issuer.is_empty()).then_some(self.oidc_issuer.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(keys: &[(&'static str, &str)]) -> Result<Config> {
        let options: Vec<_> = keys.iter().map(|(key, text)| (*key, Some((*text).to_owned()))).collect();
        Config::load(None, &options)
    }

    const ISSUER: (&str, &str) = ("oidc_issuer", "https://id.example/realm");
    const CLIENT: (&str, &str) = ("oidc_client_id", "holdfast");

    #[test]
    fn without_an_issuer_there_is_none() {
        assert!(load(&[]).expect("the defaults").oidc().expect("valid").is_none());
    }

    #[test]
    fn a_whole_configuration_is_taken() {
        let all = [
            ISSUER,
            CLIENT,
            ("oidc_client_secret", "hush hush"),
            ("oidc_scopes", "openid  email groups"),
            ("oidc_email_verified_claim", ""),
            ("oidc_link_email", "true"),
            ("oidc_create_users", "true"),
            ("oidc_workspace", "team"),
            ("oidc_role", "reader"),
        ];
        let config = load(&all).expect("valid");
        assert!(!format!("{config:?}").contains("hush"), "the secret can be printed");
        let options = config.oidc().expect("valid").expect("a provider");
        assert_eq!(options.client_secret.as_ref().map(Secret::expose), Some("hush hush"));
        assert_eq!(
            (options.scopes.as_slice(), options.claims.email_verified),
            (&["email".to_owned(), "groups".to_owned()][..], None)
        );
        let newcomers = options.newcomers.expect("they are let in");
        assert_eq!((newcomers.workspace.as_str(), newcomers.role), ("team", Role::Reader));
        // A public client has no secret.
        let public = load(&[ISSUER, CLIENT]).expect("valid").oidc().expect("valid").expect("a provider");
        assert!(public.client_secret.is_none() && public.newcomers.is_none() && !public.link_email);
        assert_eq!(public.claims.email_verified.as_deref(), Some("email_verified"));
        load(&[("oidc_issuer", "http://127.0.0.1:9"), CLIENT]).expect("a provider on this host");
    }

    #[test]
    fn half_a_configuration_is_one_line_without_the_secret() {
        let secret = ("oidc_client_secret", "hush hush");
        for (keys, named) in [
            (&[CLIENT][..], "oidc_issuer"),
            (&[secret], "oidc_issuer"),
            (&[("oidc_create_users", "true")], "oidc_issuer"),
            (&[("oidc_link_email", "true")], "oidc_issuer"),
            (&[("oidc_ca_file", "/x")], "oidc_issuer"),
            (&[ISSUER], "oidc_client_id"),
            (&[("oidc_issuer", "id.example"), CLIENT], "oidc_issuer"),
            (&[("oidc_issuer", "http://id.example"), CLIENT], "oidc_issuer"),
            (&[("oidc_issuer", "https://id.example?a=b"), CLIENT], "oidc_issuer"),
            (&[("oidc_issuer", "https://me:hush@id.example"), CLIENT], "oidc_issuer"),
            (&[ISSUER, CLIENT, secret, ("oidc_client_secret_file", "/x")], "oidc_client_secret_file"),
            (&[ISSUER, CLIENT, ("oidc_create_users", "true")], "oidc_workspace"),
            (&[ISSUER, CLIENT, ("oidc_workspace", "team")], "oidc_create_users"),
            (&[ISSUER, CLIENT, ("oidc_role", "owner")], "oidc_role"),
            (&[ISSUER, CLIENT, ("oidc_role", "king")], "oidc_role"),
            (&[ISSUER, CLIENT, ("oidc_name", " ")], "oidc_name"),
            (&[ISSUER, CLIENT, ("oidc_email_claim", "")], "oidc_email_claim"),
            (&[ISSUER, CLIENT, ("listen", "0.0.0.0:8440"), ("insecure_http", "true")], "public_url"),
        ] {
            let error = format!("{:#}", load(keys).expect_err(named));
            assert!(error.contains(named) && !error.contains('\n') && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn the_secret_can_be_in_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path").to_owned();
        let config = load(&[ISSUER, CLIENT, ("oidc_client_secret_file", &path)]).expect("valid");
        assert!(format!("{:#}", config.oidc().expect_err("it is empty")).contains(&path));
        std::fs::write(file.path(), "hush\n").expect("written");
        let options = config.oidc().expect("valid").expect("a provider");
        assert_eq!(options.client_secret.expect("a secret").expose(), "hush");
        let gone = load(&[ISSUER, CLIENT, ("oidc_client_secret_file", "/nowhere/x")]).expect("valid");
        assert!(format!("{:#}", gone.oidc().expect_err("no file")).contains("/nowhere/x"));
    }

    #[test]
    fn the_authorities_are_in_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path").to_owned();
        let load = |path: &str| load(&[ISSUER, CLIENT, ("oidc_ca_file", path)]).expect("valid").oidc();
        let error = format!("{:#}", load(&path).expect_err("it is empty"));
        assert!(error.contains("oidc_ca_file") && error.contains(&path) && !error.contains('\n'), "{error}");
        let authority = rcgen::generate_simple_self_signed(["id.example".to_owned()]).expect("a certificate");
        std::fs::write(file.path(), authority.cert.pem()).expect("written");
        assert_eq!(load(&path).expect("valid").expect("a provider").authorities.len(), 1);
        assert!(format!("{:#}", load("/nowhere/ca.pem").expect_err("no file")).contains("/nowhere/ca.pem"));
    }
}
