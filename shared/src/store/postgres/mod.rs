//! To come.
/// To come.
pub struct PostgresOptions {
    /// To come.
    pub url: secrecy::SecretString,
    /// To come.
    pub max_connections: u32,
}
/// To come.
#[allow(clippy::unused_async)]
pub async fn connect(_: PostgresOptions) -> Result<super::Store, crate::Invalid> {
    Err(crate::Invalid::new("to come"))
}
