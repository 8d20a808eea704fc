//! The identity provider, as the server asks it: its description and keys, codes for tokens, and what it says of somebody.
//!
//! The one rule: nobody is believed but by a token that the provider signed for this client and this login; what else it says
//! (user info) counts only for the same subject. Its answers are read to a bound and for a time, no redirect is followed, and
//! none of them is in an error or a log. Over https it is who its certificate says, or it is asked for nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::error::{Code, Error};
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalClaims, AsyncHttpClient, AuthType, AuthorizationCode,
    ClaimsVerificationError, ClientId, ClientSecret, CsrfToken, DiscoveryError, EmptyExtraTokenFields,
    EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IdTokenClaims, IdTokenFields, IssuerUrl,
    Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    SignatureVerificationError, StandardErrorResponse, StandardTokenResponse, SubjectIdentifier, TokenResponse,
    UserInfoClaims, UserInfoError,
};
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::pending::Pending;
use super::{CALLBACK, Options};
use crate::certificates::{cause, fault};

/// The description and the keys are asked for again after this long.
const KEEP: Duration = Duration::from_secs(3600);
/// After a failure nobody is asked for this long: those who came meanwhile hear of the same one.
const FORGIVE: Duration = Duration::from_secs(1);
/// Bytes of one answer. A set of keys has a few thousand.
const LONGEST: usize = 1024 * 1024;

/// Claims beyond the standard ones.
#[derive(Debug, Serialize, Deserialize)]
struct Rest {
    #[serde(flatten)]
    claims: Map<String, Value>,
}

impl AdditionalClaims for Rest {}

type Fields = IdTokenFields<
    Rest,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;

type Client = openidconnect::Client<
    Rest,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    StandardTokenResponse<Fields, CoreTokenType>,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

type Signed = IdTokenClaims<Rest, CoreGenderClaim>;

/// Somebody whom the provider knows.
pub struct Identified {
    /// Who they are there, as nobody else ever is.
    pub subject: String,
    /// What the signed token says of them.
    claims: Map<String, Value>,
    token: AccessToken,
    client: Arc<Client>,
}

/// What the provider says of somebody, as far as it is asked for here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub username: Option<String>,
    pub email: Option<String>,
    /// The provider, or the operator in its place, vouches for the address.
    pub email_verified: bool,
}

/// What was found out of the provider, or why not, and when.
struct Found {
    at: Instant,
    client: Result<Arc<Client>, Error>,
}

/// The provider of the configuration.
pub struct Provider {
    options: Options,
    redirect: String,
    http: Mutex<Option<Http>>,
    found: Mutex<Option<Found>>,
}

impl Provider {
    pub fn new(options: Options, public_url: &str) -> Self {
        let redirect = format!("{public_url}{CALLBACK}");
        Self { options, redirect, http: Mutex::default(), found: Mutex::default() }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where to send a browser that begins this login.
    pub async fn login_url(&self, pending: &Pending) -> Result<String, Error> {
        let client = self.client(None).await?;
        let (state, nonce) = (CsrfToken::new(pending.state()), Nonce::new(pending.nonce()));
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(pending.verifier()));
        let scopes = self.options.scopes.iter().map(|scope| Scope::new(scope.clone()));
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let request = client.authorize_url(flow, move || state, move || nonce);
        let (url, _, _) = request.add_scopes(scopes).set_pkce_challenge(challenge).url();
        Ok(url.into())
    }

    /// Exchanges the code, and checks the token that comes for it.
    pub async fn identify(&self, code: &str, pending: &Pending) -> Result<Identified, Error> {
        let http = self.http().await?;
        let client = self.client(None).await?;
        let request =
            client.exchange_code(AuthorizationCode::new(code.to_owned())).map_err(|error| unusable(&error))?;
        let answer = request
            .set_pkce_verifier(PkceCodeVerifier::new(pending.verifier()))
            .request_async(&http)
            .await
            .map_err(token_error)?;
        let token = answer.id_token().ok_or_else(|| disbelieved("there is no ID token in the answer"))?;
        let nonce = Nonce::new(pending.nonce());
        let mut client = client;
        let mut verified = token.claims(&client.id_token_verifier(), &nonce);
        if let Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey)) = verified
        {
            // It signs with a key that it did not have when it was asked.
            client = self.client(Some(Instant::now())).await?;
            verified = token.claims(&client.id_token_verifier(), &nonce);
        }
        let signed: &Signed = verified.map_err(|error| disbelieved(&reason(&error)))?;
        if let Some(expected) = signed.access_token_hash() {
            let verifier = client.id_token_verifier();
            let fault = |error: &dyn std::fmt::Display| disbelieved(&error.to_string());
            let algorithm = token.signing_alg().map_err(|error| fault(&error))?;
            let key = token.signing_key(&verifier).map_err(|error| fault(&error))?;
            let real =
                AccessTokenHash::from_token(answer.access_token(), algorithm, key).map_err(|error| fault(&error))?;
            if real != *expected {
                return Err(disbelieved("the access token is not the one that belongs to it"));
            }
        }
        let subject = signed.subject().as_str().to_owned();
        if subject.is_empty() || subject.len() > 255 || subject.chars().any(char::is_control) {
            return Err(disbelieved("its subject is none"));
        }
        Ok(Identified { subject, claims: object(signed)?, token: answer.access_token().clone(), client })
    }

    /// What is known of somebody: from their ID token, and where that is silent from the provider's user info.
    pub async fn profile(&self, who: &Identified) -> Result<Profile, Error> {
        let names = &self.options.claims;
        let wanted = [Some(&names.username), Some(&names.email), names.email_verified.as_ref()];
        let mut claims = who.claims.clone();
        let silent = wanted.into_iter().flatten().any(|name| !claims.contains_key(name));
        let subject = SubjectIdentifier::new(who.subject.clone());
        // A provider without user info has said all.
        if silent && let Ok(request) = who.client.user_info(who.token.clone(), Some(subject)) {
            let http = self.http().await?;
            let told: UserInfoClaims<Rest, CoreGenderClaim> =
                request.request_async(&http).await.map_err(user_info_error)?;
            for (name, value) in object(&told)? {
                claims.entry(name).or_insert(value);
            }
        }
        let text = |name: &str| claims.get(name)?.as_str().map(str::to_owned);
        let verified = |name: &String| claims.get(name).and_then(Value::as_bool) == Some(true);
        Ok(Profile {
            username: text(&names.username),
            email: text(&names.email),
            email_verified: names.email_verified.as_ref().is_none_or(verified),
        })
    }

    async fn http(&self) -> Result<Http, Error> {
        let mut http = self.http.lock().await;
        if let Some(http) = &*http {
            return Ok(http.clone());
        }
        Ok(http.insert(Http::new(&self.options)?).clone())
    }

    /// The provider as it described itself, asked anew if that was long ago or before `after`. Whoever comes while it is
    /// asked waits for that answer, so a provider that hangs is asked by one at a time.
    async fn client(&self, after: Option<Instant>) -> Result<Arc<Client>, Error> {
        let http = self.http().await?;
        let mut found = self.found.lock().await;
        if let Some(Found { at, client }) = &*found {
            let fresh = match client {
                Ok(_) => at.elapsed() < KEEP && after.is_none_or(|after| *at > after),
                Err(_) => at.elapsed() < FORGIVE,
            };
            if fresh {
                return client.clone();
            }
        }
        let discovered = self.discover(&http).await;
        if let Err(error) = &discovered {
            tracing::warn!(%error, issuer = self.options.issuer, "the identity provider's description was not fetched");
            if let Some(Found { client: Ok(client), .. }) = &*found
                && after.is_none()
            {
                // What it said an hour ago is better than nothing.
                return Ok(client.clone());
            }
        }
        *found = Some(Found { at: Instant::now(), client: discovered.clone() });
        discovered
    }

    async fn discover(&self, http: &Http) -> Result<Arc<Client>, Error> {
        let options = &self.options;
        let issuer = IssuerUrl::new(options.issuer.clone()).map_err(|error| unusable(&error))?;
        let redirect = RedirectUrl::new(self.redirect.clone()).map_err(|error| unusable(&error))?;
        let described = CoreProviderMetadata::discover_async(issuer, http).await.map_err(discovery_error)?;
        let post = described.token_endpoint_auth_methods_supported().is_some_and(|methods| {
            methods.contains(&CoreClientAuthMethod::ClientSecretPost)
                && !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
        });
        let secret = options.client_secret.as_ref().map(|secret| ClientSecret::new(secret.expose().to_owned()));
        let client = Client::from_provider_metadata(described, ClientId::new(options.client_id.clone()), secret);
        let client = client.set_redirect_uri(redirect);
        Ok(Arc::new(if post { client.set_auth_type(AuthType::RequestBody) } else { client }))
    }
}

fn object(claims: &impl Serialize) -> Result<Map<String, Value>, Error> {
    match serde_json::to_value(claims).map_err(Error::internal)? {
        Value::Object(object) => Ok(object),
        _ => Err(Error::internal("claims are no object")),
    }
}

fn unreachable(cause: &Failed) -> Error {
    let message = match cause.certificate {
        Some(fault) => format!("The identity provider cannot be reached: its certificate {fault}."),
        None => "The identity provider cannot be reached.".to_owned(),
    };
    Error::new(Code::OidcUnreachable, message).with_internal(cause)
}

fn unusable(cause: &dyn std::fmt::Display) -> Error {
    Error::new(Code::OidcAnswer, "The identity provider's answer cannot be used.").with_internal(cause)
}

fn disbelieved(why: &str) -> Error {
    Error::new(Code::OidcToken, "The identity provider's token is not to be believed.").with_internal(why)
}

/// A cause without anything of the token.
fn reason(error: &ClaimsVerificationError) -> String {
    match error {
        ClaimsVerificationError::SignatureVerification(why) => format!("signature: {why}"),
        ClaimsVerificationError::InvalidNonce(_) => "it was made for another login (nonce)".to_owned(),
        other => other.to_string(),
    }
}

fn discovery_error(error: DiscoveryError<Failed>) -> Error {
    match error {
        DiscoveryError::Request(cause) => unreachable(&cause),
        DiscoveryError::Parse(cause) => unusable(&format!("its description: {}", cause.path())),
        // What a gateway in front of it says while it is down.
        DiscoveryError::Response(status, _, _) if status.is_server_error() => {
            unreachable(&Failed::new(format!("it answers {}", status.as_u16())))
        }
        other => unusable(&other),
    }
}

fn token_error(error: RequestTokenError<Failed, StandardErrorResponse<CoreErrorResponseType>>) -> Error {
    match error {
        RequestTokenError::Request(cause) => unreachable(&cause),
        RequestTokenError::ServerResponse(refusal) => {
            unusable(&format!("it did not exchange the code: {}", refusal.error().as_ref()))
        }
        // The rest of the cause quotes the answer.
        RequestTokenError::Parse(cause, _) => unusable(&format!("its tokens: {}", cause.path())),
        RequestTokenError::Other(cause) => unusable(&cause),
    }
}

fn user_info_error(error: UserInfoError<Failed>) -> Error {
    match error {
        UserInfoError::Request(cause) => unreachable(&cause),
        UserInfoError::Parse(cause) => unusable(&format!("its user info: {}", cause.path())),
        UserInfoError::ClaimsVerification(cause) => disbelieved(&format!("user info: {cause}")),
        other => unusable(&format!("user info: {other}")),
    }
}

/// Why the provider did not answer. Names no address: that is in the configuration.
#[derive(Debug)]
struct Failed {
    why: String,
    /// What is wrong with its certificate, if that is the reason.
    certificate: Option<&'static str>,
}

impl Failed {
    fn new(why: String) -> Self {
        Self { why, certificate: None }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failed {}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let why = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        Self { why, certificate: cause::<rustls::Error>(&error).and_then(fault) }
    }
}

/// The way to the provider.
#[derive(Clone)]
struct Http(reqwest::Client);

impl Http {
    fn new(options: &Options) -> Result<Self, Error> {
        // The client takes the process's choice; where none was made (tests), this is it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = reqwest::Url::parse(&options.issuer).map_err(Error::internal)?;
        let builder = reqwest::Client::builder().redirect(Policy::none()).timeout(options.patience);
        let builder = builder.tls_certs_merge(options.authorities.iter().cloned());
        // A proxy of the environment is for the world outside, not for a provider on this host.
        let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let builder = if loopback { builder.no_proxy() } else { builder };
        builder.build().map(Self).map_err(Error::internal)
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Failed> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > LONGEST {
                return Err(Failed::new(format!("its answer is longer than {LONGEST} bytes")));
            }
        }
        let mut response = HttpResponse::new(bytes);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Failed>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}
