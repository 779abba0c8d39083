//! Conveniences of `triggers dev`: an organization with a key that is kept in a file, and a first command to paste.

use std::{
    fs::DirBuilder,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use shared::{
    KeyId, KeyText, OrganizationId, Scopes, Tier,
    engine::{Engine, kept_secret},
    store::NewKey,
};

/// The name of the organization, and of its key.
const NAME: &str = "dev";

/// Sees to it that the key in the data directory's file is one of the organization `dev`, and makes both at first.
pub async fn ready_made_key(engine: &Engine, data_dir: &Path) -> anyhow::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let file = data_dir.join("dev-key");
    let text = kept_secret(&file, || KeyText::generate().expose().to_owned())
        .with_context(|| format!("the key file {} cannot be used", file.display()))?;
    let hash = KeyText::hash_of(&text).with_context(|| {
        format!(
            "{} does not hold an API key; delete it to have a new one made",
            file.display()
        )
    })?;
    if engine.store.organizations.grants(&[hash]).await?.is_empty() {
        let organization = OrganizationId::new();
        let key = NewKey {
            id: KeyId::new(),
            organization,
            name: NAME.to_owned(),
            hint: text.chars().take(13).collect(),
            hash,
            scopes: Scopes::all(),
            expires_at: None,
        };
        engine
            .store
            .organizations
            .create(organization, NAME, Tier::Unlimited, key)
            .await
            .with_context(|| {
                format!(
                    "the key in {} cannot be used; delete it to have a new one made",
                    file.display()
                )
            })?;
    }
    Ok(file)
}

/// Says where it is, and what to paste.
pub fn greet(address: SocketAddr, key_file: &Path) {
    let key_file = shown(key_file);
    println!(
        "\nTriggers is running at http://{address}\n\n\
         Post an event:\n\n  \
         curl -sS http://{address}/v1/events -H \"authorization: Bearer $(cat {key_file})\" \
         -H 'content-type: application/json' -d '{{\"type\":\"user.created\",\"payload\":{{\"name\":\"Ada\"}}}}'\n\n\
         It waits in the inbox, until a subscription takes its kind:\n\n  \
         curl -sS http://{address}/v1/inbox -H \"authorization: Bearer $(cat {key_file})\"\n"
    );
}

/// A path as a shell takes it.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(
            shown(Path::new("./triggers-data/dev-key")),
            "./triggers-data/dev-key"
        );
        assert_eq!(shown(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
    }
}
