//! What it costs to disable and to enable a subscription, with a small backlog parked and with a large one; and what that
//! costs the others.
//!
//! The backlogs are written straight into the store, as intake would have left them: to post a million events takes
//! longer than all that is measured here. One in ten has been tried once, and is due later than what came after it. While they are
//! enabled, one delivery a second is let through, so that the backlogs stay what they are.

use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::{
    Args,
    deployment::Deployment,
    load::{Load, OPEN_CONNECTIONS, Post, Shape},
    receiver,
    report::Times,
    spread::Spread,
};

/// How long a subscription stays enabled, and disabled, in each round.
const STAYS: Duration = Duration::from_millis(700);
/// How long the others are measured with nothing else going on.
const QUIET: Duration = Duration::from_secs(20);
/// How long the largest backlog may drain, at the end.
const DRAINS: Duration = Duration::from_secs(20);

/// Open deliveries `$2` to `$3` of the subscription with the URL `$1`, and their events. Their `seq` is below all that intake gives.
const WRITE: &str = "
    WITH posted AS (
        SELECT i, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 1000000 + i), 12, '0')
            || '7' || substr(md5(i::text || $1), 1, 3) || '8' || substr(md5(i::text || $1), 4, 15))::uuid AS id
        FROM generate_series($2::bigint, $3::bigint) AS numbers (i)
    ), stored AS (
        INSERT INTO events (id, organization_id, seq, received_at, type, payload)
        SELECT posted.id, s.organization_id, posted.i, now(), 'parked', '{\"pad\":\"' || repeat('x', $4) || '\"}'
        FROM posted CROSS JOIN subscriptions s WHERE s.url = $1
    )
    INSERT INTO deliveries (event_id, subscription_id, organization_id, seq, due_at, state, attempts)
    SELECT posted.id, s.id, s.organization_id, posted.i,
        now() - interval '1 hour' + make_interval(secs => CASE WHEN i % 10 = 0 THEN 1200 ELSE 0 END + i / 1000000.0),
        CASE WHEN i % 10 = 0 THEN 'retrying' ELSE 'pending' END, CASE WHEN i % 10 = 0 THEN 1 ELSE 0 END
    FROM posted CROSS JOIN subscriptions s WHERE s.url = $1";

struct Parked {
    count: u64,
    path: String,
    disabling: Vec<Duration>,
    enabling: Vec<Duration>,
}

impl Parked {
    /// A subscription that is disabled, and so many deliveries of it.
    async fn new(deployment: &Deployment, args: &Args, url: String, count: u64) -> anyhow::Result<Self> {
        let subscription = json!({
            "url": url, "event_types": ["parked"], "enabled": false, "rate_limit_per_second": 1,
            "retry_schedule_seconds": [10, 10],
        });
        let made = deployment
            .call(
                Method::POST,
                "/v1/subscriptions",
                &deployment.key,
                &subscription,
                201,
            )
            .await?;
        let id = made.0["id"].as_str().context("no id was answered")?;
        let mut store = PgConnection::connect(&deployment.database_url()?).await?;
        let mut first = 1;
        while first <= count {
            let last = count.min(first + 49_999);
            sqlx::query(WRITE)
                .bind(&url)
                .bind(first.cast_signed())
                .bind(last.cast_signed())
                .bind(args.payload_bytes.cast_signed())
                .execute(&mut store)
                .await?;
            first = last + 1;
        }
        Ok(Self {
            count,
            path: format!("/v1/subscriptions/{id}"),
            disabling: Vec::new(),
            enabling: Vec::new(),
        })
    }

    async fn set(&self, deployment: &Deployment, settings: &Value) -> anyhow::Result<Duration> {
        let set = deployment.call(Method::PATCH, &self.path, &deployment.key, settings, 200);
        Ok(set.await?.1)
    }

    async fn enable(&self, deployment: &Deployment) -> anyhow::Result<Duration> {
        let path = format!("{}/enable", self.path);
        let nothing = json!({});
        let enabled = deployment.call(Method::POST, &path, &deployment.key, &nothing, 200);
        Ok(enabled.await?.1)
    }

    /// Enables and disables it, so many times.
    async fn rounds(&mut self, deployment: &Deployment, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..rounds {
            self.enabling.push(self.enable(deployment).await?);
            tokio::time::sleep(STAYS).await;
            let off = self.set(deployment, &json!({"enabled": false})).await?;
            self.disabling.push(off);
            tokio::time::sleep(STAYS).await;
        }
        Ok(())
    }
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let rate = args.rate.unwrap_or(300);
    let rounds = args.rounds * 4;
    println!(
        "park on {:?}: {:?} deliveries parked; each enabled and disabled {rounds} times, beside {rate} events/s for {} \
         subscriptions\n",
        args.engine, args.parked, args.subscriptions
    );
    let (taking, others) = (receiver::start().await?, receiver::start().await?);
    let Spread { deployment, load } = Spread::start(args, args.workers(), others.address, &json!({})).await?;
    let measured = measure(
        args,
        &deployment,
        &load,
        rate,
        rounds,
        &format!("http://{}", taking.address),
    )
    .await;
    deployment.end().await?;
    let (parked, phases, posted, drained) = measured?;
    others.settle(posted).await;

    let arrivals = others.arrivals();
    let mut rows = Vec::new();
    println!("parked     disable ms: median   range            enable ms: median   range");
    for one in &parked {
        let (off, on) = (Spent::of(&one.disabling), Spent::of(&one.enabling));
        println!(
            "{:>9}  {:>18.2}   {:>5.2} to {:<7.2}  {:>17.2}   {:>5.2} to {:<7.2}",
            one.count, off.median, off.least, off.most, on.median, on.least, on.most
        );
        rows.push(json!({"parked": one.count, "disable_ms": off.to_json(), "enable_ms": on.to_json()}));
    }
    println!("\nothers, while                    p50 ms    p99 ms   to before   lost");
    let (mut others, mut before) = (Vec::new(), None);
    for (name, posts) in &phases {
        let accepted = posts.iter().filter(|post| post.status == 202);
        let lost = accepted
            .filter(|post| !arrivals.contains_key(&post.number))
            .count();
        let times = Times::of(posts.iter().filter_map(|post| {
            let (at, _) = arrivals.get(&post.number)?;
            Some(at.saturating_duration_since(post.due))
        }));
        let ratio = times.p99 / *before.get_or_insert(times.p99);
        println!(
            "{name:<30}  {:>7.2}   {:>7.2}   × {ratio:>6.2}   {lost:>4}",
            times.p50, times.p99
        );
        others.push(json!({"while": name, "times": times.to_json(), "p99_to_before": ratio, "lost": lost}));
    }
    println!("\nthe largest drained at {drained:.0}/s");
    Ok(json!({
        "scenario": "park", "parked": rows, "others": others, "drained_per_second": drained,
    }))
}

type Measured = (Vec<Parked>, Vec<(String, Vec<Post>)>, u64, f64);

async fn measure(
    args: &Args,
    deployment: &Deployment,
    load: &Load,
    rate: u32,
    rounds: u32,
    receiver: &str,
) -> anyhow::Result<Measured> {
    let mut parked = Vec::new();
    for count in &args.parked {
        eprintln!("writing {count} …");
        parked.push(Parked::new(deployment, args, format!("{receiver}/{count}"), *count).await?);
    }
    // Else it comes by while something is measured.
    let mut store = PgConnection::connect(&deployment.database_url()?).await?;
    for statement in ["VACUUM ANALYZE events", "VACUUM ANALYZE deliveries", "CHECKPOINT"] {
        sqlx::query(statement).execute(&mut store).await?;
    }
    let shape = Shape::Open {
        rate,
        connections: OPEN_CONNECTIONS,
    };
    let mut phases = Vec::new();
    let warmed = load.run(shape, Duration::from_secs(3), 0).await?.posted();
    let before = load.run(shape, QUIET, warmed).await?;
    let mut next = before.posted();
    phases.push(("nothing else happens".to_owned(), before.posts));
    for one in &mut parked {
        eprintln!("{} parked …", one.count);
        let length = 2 * STAYS * rounds;
        let (run, ()) = tokio::try_join!(load.run(shape, length, next), one.rounds(deployment, rounds))?;
        next = run.posted();
        phases.push((format!("{} go on and off", one.count), run.posts));
    }
    let largest = parked
        .iter()
        .max_by_key(|one| one.count)
        .context("nothing is parked")?;
    let at_full_speed = json!({"rate_limit_per_second": null, "max_in_flight": 64, "enabled": true});
    let delivered = async || -> anyhow::Result<f64> {
        let all = deployment.worker_metrics("triggers_deliveries_total").await?;
        Ok(all.iter().sum())
    };
    largest.set(deployment, &at_full_speed).await?;
    let (begun, at_first) = (Instant::now(), delivered().await?);
    let run = load.run(shape, DRAINS, next).await?;
    let others = run.posts.len() as f64;
    let drained = (delivered().await? - at_first - others) / begun.elapsed().as_secs_f64();
    largest.set(deployment, &json!({"enabled": false})).await?;
    let posted = run.posted();
    phases.push((format!("{} drain", largest.count), run.posts));
    Ok((parked, phases, posted, drained))
}

struct Spent {
    median: f64,
    least: f64,
    most: f64,
}

impl Spent {
    fn of(times: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
        Self {
            median: at(sorted.len() / 2),
            least: at(0),
            most: at(sorted.len().saturating_sub(1)),
        }
    }

    fn to_json(&self) -> Value {
        json!({"median": self.median, "least": self.least, "most": self.most})
    }
}
