//! What is told of a fault while it is there.

use std::time::Duration;

use harness::eventually;

use crate::deployment::Deployment;

/// How long it may take until a fault is noticed.
const NOTICED: Duration = Duration::from_secs(20);

/// Every ingest says that it cannot take events now, and when to ask again. It lives, and says so: it must not be killed
/// for this.
pub async fn ingests_are_not_ready(deployment: &Deployment) {
    for ingest in &deployment.ingests {
        eventually("ingest is not ready", NOTICED, async || {
            let ready = deployment.world.get(ingest, "/health/ready").await;
            if ready.status == 503 {
                assert!(!ready.header("retry-after").is_empty(), "{ready:?}");
                Ok(())
            } else {
                Err(ready.text)
            }
        })
        .await;
        deployment.world.get(ingest, "/health/live").await.expect(200);
    }
}

/// What needs the database is refused for that, and soon.
pub async fn api_is_unavailable(deployment: &Deployment) {
    let client = deployment.tenants[0].client();
    eventually("the database is missed", NOTICED, async || {
        let asked = tokio::time::timeout(Duration::from_secs(10), client.get("/v1/subscriptions")).await;
        let answer = asked.map_err(|_| "no answer within 10 s".to_owned())?;
        if answer.status == 200 {
            return Err("it answers".to_owned());
        }
        answer.problem(503, "unavailable");
        Ok(())
    })
    .await;
}

/// What is in the queue is taken in while the broker refuses more: acknowledgements pass.
pub async fn queue_drains(deployment: &Deployment) {
    eventually("the queue is empty", NOTICED, async || {
        let metrics = deployment.world.get(&deployment.workers[0], "/metrics").await;
        if metrics.text.lines().any(|line| line == "triggers_queue_frames 0") {
            Ok(())
        } else {
            Err(metrics.text)
        }
    })
    .await;
}
