//! What every process does at its start: logs, metrics, traces, a listener, and a schema that is up to date.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::{
    OrganizationId,
    config::{ProcessArgs, SettingError},
    engine::Engine,
    lifecycle::Lifecycle,
    store, telemetry,
    trace::{self, TraceArgs},
};

/// More than all connections that a process ever has: there are systems on which a limit of billions makes programs slow.
const MAX_OPEN_FILES: u64 = 65_536;

/// Runs a process: sets up logs, metrics, and traces if it has any, builds it by `start`, and waits until it is asked to stop
/// and has drained. An error is one line on standard error, and the exit code 1 (2 for a wrong setting).
pub fn run<F>(
    args: &ProcessArgs,
    traces: Option<&TraceArgs>,
    start: impl FnOnce(Lifecycle, PrometheusHandle) -> F,
) -> std::process::ExitCode
where
    F: Future<Output = anyhow::Result<Option<Engine>>>,
{
    raise_open_files();
    let ran = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            runtime.block_on(async {
                let lifecycle = Lifecycle::new();
                lifecycle.heed_signals()?;
                telemetry::init_logs(&args.log).map_err(SettingError::of("TRIGGERS_LOG"))?;
                let metrics = telemetry::init_metrics()?;
                lifecycle.critical(
                    "metrics",
                    telemetry::keep_metrics(metrics.clone(), lifecycle.clone()),
                );
                let spans = traces.map(trace::init).transpose()?.flatten();
                // What starts may heed the signal itself, and is asked first. If it does not, it is dropped where it waits.
                let engine = tokio::select! {
                    biased;
                    started = start(lifecycle.clone(), metrics) => started?,
                    () = lifecycle.soft.cancelled() => None,
                };
                let stopped = lifecycle.run(args.shutdown_deadline()).await;
                // Both are bounded, since a server that is away answers nothing. No span ends any more: all tasks have.
                let engine_closed = async {
                    if let Some(engine) = engine {
                        let _ = tokio::time::timeout(Duration::from_secs(5), engine.close()).await;
                    }
                };
                let spans_sent = async {
                    if let Some(spans) = spans {
                        spans.close().await;
                    }
                };
                tokio::join!(engine_closed, spans_sent);
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

/// Raises the limit of open files as far as this process may: each connection is one. Where it may not, it goes on with
/// what it has; what finds no descriptor waits for one.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let wanted = hard.min(MAX_OPEN_FILES);
            if soft < wanted {
                let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
            }
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

/// Gets the store ready for roles that seal or open secrets: the schema, if this process is to `migrate`, and that the
/// secret key is the deployment's. Waits for a store that is away; `false` if the process is to stop first.
pub async fn prepare(engine: &Engine, migrate: bool, lifecycle: &Lifecycle) -> anyhow::Result<bool> {
    Ok((!migrate || self::migrate(engine, lifecycle).await?) && check_secret_key(engine, lifecycle).await?)
}

/// Brings the schema up to date, waiting for a store that is away; `false` if the process is to stop first.
pub async fn migrate(engine: &Engine, lifecycle: &Lifecycle) -> anyhow::Result<bool> {
    let what = "the schema cannot be brought up to date";
    let migrated = patiently(what, lifecycle, || engine.store.keeper.migrate()).await?;
    Ok(migrated.is_some())
}

/// Makes sure that the secret key is the one that the deployment's secrets are sealed under, before one of them does not
/// open. The deployment's first start says which that is.
async fn check_secret_key(engine: &Engine, lifecycle: &Lifecycle) -> anyhow::Result<bool> {
    let own = engine.sealer.check_value();
    let what = "the secret key cannot be checked";
    let keep = || engine.store.keeper.secret_check(own.clone());
    let Some(kept) = patiently(what, lifecycle, keep).await? else {
        return Ok(false);
    };
    engine.sealer.check(&kept).map_err(|_| {
        SettingError::new(
            "TRIGGERS_SECRET_KEY",
            "is not the key that this deployment's secrets are sealed under: set the one that it was first started with, or \
             that it was changed to; while it is changed, the other belongs into TRIGGERS_FORMER_SECRET_KEYS (embedded, without the setting: put its file secret-key back into the data directory)",
        )
    })?;
    Ok(true)
}

/// How often all secrets are looked at: as often as some were sealed under a former key meanwhile, this often at most.
const PASSES: usize = 10;

/// Seals anew, under the current key, every secret that is sealed under a former one, and has the deployment know its key by
/// the current one from then on. Done in small steps: it may be stopped and begun again, and run beside processes that
/// have both keys. The deployment's key is another only once a look at all secrets has found none that is sealed otherwise.
/// Says how many secrets it sealed; `None` if the process is to stop first.
pub async fn reseal(engine: &Engine, lifecycle: &Lifecycle) -> anyhow::Result<Option<u64>> {
    let (sealer, store) = (&engine.sealer, &engine.store);
    if !check_secret_key(engine, lifecycle).await? {
        return Ok(None);
    }
    let (mut done, mut passes) = (0, 0);
    while let Some(sealed) = reseal_all(engine, lifecycle).await? {
        done += sealed.anew;
        if sealed.found > 0 {
            passes += 1;
            anyhow::ensure!(
                passes < PASSES,
                "secrets are still being sealed under a former key: set TRIGGERS_SECRET_KEY of every process to the current \
                 one, restart it, and run this again"
            );
            continue;
        }
        let own = sealer.check_value();
        let kept = || store.keeper.secret_check(own.clone());
        let Some(kept) = patiently("the check value cannot be read", lifecycle, kept).await? else {
            return Ok(None);
        };
        if !kept.0.starts_with(&sealer.key_id()) {
            let replace = || store.keeper.replace_secret_check(&kept, own.clone());
            if patiently("the check value cannot be written", lifecycle, replace)
                .await?
                .is_none()
            {
                return Ok(None);
            }
        }
        return Ok(Some(done));
    }
    Ok(None)
}

/// What came of a look at all secrets.
#[derive(Debug, Default)]
struct Resealed {
    /// How many were sealed under a former key.
    found: u64,
    /// How many of those this has sealed anew.
    anew: u64,
}

/// Looks at all secrets once, and seals anew what is sealed under a former key; `None` if the process is to stop first. Each
/// organization's version is raised once, when that is done, so that plans are by the subscriptions' new ones; also where it ends
/// before all is done.
async fn reseal_all(engine: &Engine, lifecycle: &Lifecycle) -> anyhow::Result<Option<Resealed>> {
    let mut concerned = BTreeSet::new();
    let resealed = reseal_each(engine, lifecycle, &mut concerned).await;
    for organization in concerned {
        let raise = || engine.store.subscriptions.raise_version(organization);
        // Also where it is to stop: once, without patience.
        let what = "versions cannot be raised";
        if lifecycle.soft.is_cancelled() || patiently(what, lifecycle, raise).await?.is_none() {
            raise().await?;
        }
    }
    resealed
}

/// Notes in `concerned` whose subscriptions have other versions now.
async fn reseal_each(
    engine: &Engine,
    lifecycle: &Lifecycle,
    concerned: &mut BTreeSet<OrganizationId>,
) -> anyhow::Result<Option<Resealed>> {
    let (sealer, store) = (&engine.sealer, &engine.store);
    let (mut after, mut resealed) = (None, Resealed::default());
    loop {
        let what = "secrets cannot be read";
        let read = || store.subscriptions.sealed_otherwise(sealer.key_id(), after, 100);
        let Some(found) = patiently(what, lifecycle, read).await? else {
            return Ok(None);
        };
        let Some(last) = found.last() else {
            return Ok(Some(resealed));
        };
        after = Some(last.id);
        for subscription in &found {
            let (organization, id) = (subscription.organization, subscription.id);
            for before in &subscription.secrets {
                if before.0.starts_with(&sealer.key_id()) {
                    continue;
                }
                resealed.found += 1;
                let anew = sealer.reseal(organization, id.uuid(), before);
                let anew = anew.map_err(|error| anyhow::anyhow!("subscription {id}: {error}"))?;
                let put = || store.subscriptions.reseal(id, before, anew.clone());
                match patiently("secrets cannot be written", lifecycle, put).await? {
                    None => return Ok(None),
                    // Where it was changed meanwhile, the next look finds what became of it.
                    Some(false) => {}
                    Some(true) => {
                        resealed.anew += 1;
                        concerned.insert(organization);
                    }
                }
            }
        }
    }
}

/// Makes a call to the store until it is answered; `None` if the process is to stop first.
async fn patiently<T, F: Future<Output = store::Result<T>>>(
    what: &'static str,
    lifecycle: &Lifecycle,
    call: impl Fn() -> F,
) -> anyhow::Result<Option<T>> {
    loop {
        let answered = lifecycle.soft.run_until_cancelled(call()).await;
        match answered {
            None => return Ok(None),
            Some(Ok(answer)) => return Ok(Some(answer)),
            Some(Err(error)) if error.is_transient() => {
                tracing::warn!(%error, "{what} yet; waiting for the store");
                let pause = tokio::time::sleep(Duration::from_secs(1));
                lifecycle.soft.run_until_cancelled(pause).await;
            }
            Some(Err(error)) => return Err(anyhow::Error::from(error).context(what)),
        }
    }
}
