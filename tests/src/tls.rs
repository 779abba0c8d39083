//! Certificates of a test's own: an authority that the product is told to trust, and what it signs.

use std::{path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use crate::Scratch;

/// A certificate authority, in a PEM file.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: Scratch,
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It is of another host.
    OtherHost,
    /// Its time is over.
    Expired,
    /// Nobody vouches for it but itself.
    SelfSigned,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are sound names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let directory = Scratch::new();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("a file can be written");
        Self { issuer, directory }
    }

    /// Its PEM file, as `TRIGGERS_EXTRA_CA_FILE` takes it.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A server for `localhost` that offers these protocols by ALPN.
    pub fn server(&self, flaw: Flaw, protocols: &[&str]) -> TlsAcceptor {
        let host = match flaw {
            Flaw::OtherHost => "elsewhere.example",
            _ => "localhost",
        };
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("the name is sound");
        if flaw == Flaw::Expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = match flaw {
            Flaw::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let certificate = certificate.expect("a certificate").der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the certificate has this key");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
