//! Whom the server believes over TLS, and what was wrong with the certificate of somebody whom it does not believe.
//!
//! The one rule: what is said of a certificate is words of ours. They go to whoever asked, and a driver's would tell more of
//! the server's network than that is worth.

use std::error::Error;

use reqwest::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, RootCertStore};

/// The certificates of a file in PEM, or what is wrong with it.
pub fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut all = Vec::new();
    for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
        let unusable = || format!("certificate {number} cannot be read");
        let der = certificate.map_err(|_| unusable())?;
        RootCertStore::empty().add(der.clone()).map_err(|_| unusable())?;
        all.push(Certificate::from_der(&der).map_err(|_| unusable())?);
    }
    if all.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(all) }
}

/// The first cause of this kind, however deep it lies.
pub fn cause<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error holds is not what it calls its source, but that one's.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// What is wrong with the certificate of the other side, as the end of a sentence about it; `None`: something else is.
pub fn fault(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let rustls::Error::InvalidCertificate(wrong) = error else { return None };
    Some(match wrong {
        NotValidForName | NotValidForNameContext { .. } => "is for another name",
        Expired | ExpiredContext { .. } => "has expired",
        NotValidYet | NotValidYetContext { .. } => "is not valid yet",
        UnknownIssuer => "is of no authority that this server trusts",
        _ => "cannot be trusted",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_none() {
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, wrong) in [
            ("", "holds no certificate in PEM"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate in PEM"),
            (broken, "certificate 1 cannot be read"),
            (&broken[..40], "certificate 1 cannot be read"),
        ] {
            assert_eq!(authorities(pem.as_bytes()).expect_err(pem), wrong);
        }
    }

    #[test]
    fn a_cause_is_found_however_it_is_wrapped() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(inner));
        let found = cause::<rustls::Error>(&wrapped).expect("it is there");
        assert_eq!(fault(found), Some("is of no authority that this server trusts"));
        assert!(cause::<rustls::Error>(&std::io::Error::other("no")).is_none());
        assert_eq!(fault(&rustls::Error::HandshakeNotComplete), None);
    }
}
