//! What every process does at its start: logs, metrics, a listener, and a schema that is up to date.

use std::{net::SocketAddr, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::{
    config::{ProcessArgs, SettingError},
    engine::Engine,
    lifecycle::Lifecycle,
    telemetry,
};

/// Runs a process: sets up logs and metrics, builds it by `start`, and waits until it is asked to stop and has drained.
/// An error is one line on standard error, and the exit code 1 (2 for a wrong setting).
pub fn run<F>(
    args: &ProcessArgs,
    start: impl FnOnce(Lifecycle, PrometheusHandle) -> F,
) -> std::process::ExitCode
where
    F: Future<Output = anyhow::Result<Option<Engine>>>,
{
    let ran = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            runtime.block_on(async {
                telemetry::init_logs(&args.log).map_err(SettingError::of("TRIGGERS_LOG"))?;
                let metrics = telemetry::init_metrics()?;
                let lifecycle = Lifecycle::new();
                lifecycle.critical(
                    "metrics",
                    telemetry::keep_metrics(metrics.clone(), lifecycle.clone()),
                );
                let engine = start(lifecycle.clone(), metrics).await?;
                let stopped = lifecycle.run(args.shutdown_deadline()).await;
                if let Some(engine) = engine {
                    // Bounded, since a server that is away answers nothing.
                    let _ = tokio::time::timeout(Duration::from_secs(5), engine.close()).await;
                }
                stopped
            })
        });
    match ran {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::from(if error.is::<SettingError>() { 2 } else { 1 })
        }
    }
}

/// Listens, and says where in a log line whose message is `listening`.
pub async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        SettingError::new(
            "TRIGGERS_LISTEN",
            format!("({address}) cannot be listened on: {error}; choose another"),
        )
    })?;
    let address = listener.local_addr()?;
    tracing::info!(listen.address = %address, "listening");
    Ok((listener, address))
}

/// Brings the schema up to date, waiting for a store that is away; `false` if the process is to stop first.
pub async fn migrate(engine: &Engine, lifecycle: &Lifecycle) -> anyhow::Result<bool> {
    loop {
        let migrated = tokio::select! {
            () = lifecycle.soft.cancelled() => return Ok(false),
            migrated = engine.store.keeper.migrate() => migrated,
        };
        match migrated {
            Ok(()) => return Ok(true),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "the schema cannot be brought up to date yet; waiting for the store");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                return Err(anyhow::Error::from(error).context("the schema cannot be brought up to date"));
            }
        }
    }
}
