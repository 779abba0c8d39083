//! A deployment with many subscriptions of many organizations, each of which wants one type of event alone.

use std::net::SocketAddr;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::{Args, deployment::Deployment, load::Load};

/// A deployment, and a load that goes over all of its subscriptions in turn.
pub struct Spread {
    /// The deployment.
    pub deployment: Deployment,
    /// The load.
    pub load: Load,
}

impl Spread {
    /// Starts one with these subscriptions at the receiver; `settings` are added to each.
    pub async fn start(
        args: &Args,
        workers: u8,
        receiver: SocketAddr,
        settings: &Value,
    ) -> anyhow::Result<Self> {
        let deployment = Deployment::of(args, workers).await?;
        let organizations = args.organizations().min(args.subscriptions);
        let keys: Vec<String> = stream::iter(0..organizations)
            .map(|_| deployment.organization())
            .buffered(8)
            .try_collect()
            .await?;
        stream::iter(0..args.subscriptions)
            .map(|number| {
                let key = &keys[(number % organizations) as usize];
                let event_type = if args.subscriptions == 1 {
                    "bench.event".to_owned()
                } else {
                    format!("bench.{number}")
                };
                let mut subscription = json!({
                    "url": format!("http://{receiver}/{number}"),
                    "event_types": [event_type],
                });
                if let (Value::Object(subscription), Value::Object(settings)) = (&mut subscription, settings)
                {
                    subscription.extend(settings.clone());
                }
                let deployment = &deployment;
                async move { deployment.subscribe_as(key, &subscription).await }
            })
            .buffered(8)
            .try_collect::<()>()
            .await?;
        let load = Load {
            target: deployment.ingest,
            keys,
            types: args.subscriptions,
            payload: args.payload_bytes as usize,
            batch: 1,
        };
        Ok(Self { deployment, load })
    }
}
