//! To come.
/// To come.
#[allow(clippy::unused_async)]
pub async fn open(_: &std::path::Path) -> super::Result<super::Store> {
    Err(super::StoreError::Corrupt("to come".into()))
}
