//! What is trusted of servers that are connected to over TLS.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::config::SettingError;

/// What a client of TLS trusts: the public authorities, and those of a PEM file that a setting names.
pub fn client(setting: &'static str, extra_ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    if let Some(file) = extra_ca_file {
        add_roots(&mut roots, setting, file)?;
    }
    let provider = Arc::new(ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Trusts the authorities of a PEM file, too.
fn add_roots(roots: &mut RootCertStore, setting: &'static str, file: &Path) -> Result<(), SettingError> {
    let wrong = |rule: String| SettingError::new(setting, rule);
    let name = file.display();
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(format!("({name}) cannot be read as PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(format!(
            "({name}) holds no certificate: it must be a PEM file of certificate authorities"
        )));
    }
    for certificate in certificates {
        roots.add(certificate).map_err(|error| {
            wrong(format!(
                "({name}) holds what is no certificate authority: {error}"
            ))
        })?;
    }
    Ok(())
}
