//! What each fault of the catalogue does, what ends it, and what shows afterwards that it was one.

use std::time::Duration;

use harness::Link;

use crate::{
    catalogue::Fault, content, crowd, database, deployment::Deployment, network, processes, resources,
    showing, subscriber,
};

impl Fault {
    /// Whether it takes all its time to inject it: what is injected once and lasts goes before it.
    pub fn is_busy(self) -> bool {
        matches!(
            self,
            Self::IngestKilled
                | Self::WorkersKilled
                | Self::ApiKilled
                | Self::RollingRestart
                | Self::DatabaseEndsSessions
                | Self::DatabaseDeadlocks
                | Self::DatabaseCannotSerialize
                | Self::QueueFull
                | Self::EmbeddedDiskFull
                | Self::EventRefused
                | Self::EventFailsAlways
                | Self::FrameReturnedTooOften
        )
    }

    pub async fn inject(self, deployment: &mut Deployment, hold: Duration) {
        let d = deployment;
        match self {
            Self::IngestKilled => {
                let nodes = d.ingests.clone();
                processes::kill_again_and_again(d, &nodes, hold).await;
            }
            Self::WorkersKilled => {
                let nodes = d.workers.clone();
                processes::kill_again_and_again(d, &nodes, hold).await;
            }
            Self::ApiKilled => {
                let nodes = [std::sync::Arc::clone(&d.api)];
                processes::kill_again_and_again(d, &nodes, hold).await;
            }
            Self::RollingRestart => processes::restart_in_turn(d).await,
            Self::BrokerKilled => d.broker.kill(),
            Self::BrokerRestarted => d.broker.stop(),
            Self::BrokerHangs => d.broker.pause(),
            Self::BrokerCut => d.marks.broker_ended = network::fail(&d.broker_link, Link::Cut),
            Self::BrokerReset => d.marks.broker_ended = network::fail(&d.broker_link, Link::Reset),
            Self::BrokerSilent => d.broker_link.set(Link::Silent),
            Self::BrokerHalfOpen => d.broker_link.set(Link::HalfOpen),
            Self::BrokerSlow => d.broker_link.set(network::SLOW_BROKER),
            Self::BrokerOutOfMemory => d.broker.alarm(true).await,
            Self::BrokerOutOfDisk => d.broker.disk_alarm(true).await,
            Self::QueueFull => content::fill_queue(d).await,
            Self::QueueDeleted => content::delete_queues(d).await,
            Self::DatabaseKilled => d.database.kill(),
            Self::DatabaseRestarted => d.database.stop_fast(),
            Self::DatabaseHangs => d.database.pause(),
            Self::DatabaseCut => d.marks.database_ended = network::fail(&d.database_link, Link::Cut),
            Self::DatabaseReset => d.marks.database_ended = network::fail(&d.database_link, Link::Reset),
            Self::DatabaseSilent => d.database_link.set(Link::Silent),
            Self::DatabaseSlow => d.database_link.set(network::SLOW_DATABASE),
            Self::DatabaseOutOfConnections => database::take_all_connections(d).await,
            Self::DatabaseEndsSessions => database::end_sessions(d, hold).await,
            Self::DatabaseDeadlocks => database::deadlocks(d, hold).await,
            Self::DatabaseCannotSerialize => database::cannot_serialize(d, hold).await,
            Self::DatabaseLocked => database::lock(d).await,
            Self::SubscriberRefuses
            | Self::SubscriberResets
            | Self::SubscriberHangs
            | Self::SubscriberDrips
            | Self::SubscriberAnswersHugely
            | Self::SubscriberRedirects
            | Self::SubscriberWithBadTls
            | Self::SubscriberMoves
            | Self::DnsHangs => subscriber::inject(self, d).await,
            Self::OneOfAThousandDead => crowd::one_dead(d).await,
            Self::AllOfAThousandDeadButOne => crowd::all_dead_but_one(d).await,
            Self::ClockAhead => processes::step_clocks(d, true).await,
            Self::ClockBehind => processes::step_clocks(d, false).await,
            Self::WorkerStalls => processes::stall(d).await,
            Self::IngestOutOfDescriptors => resources::take_ingests(d).await,
            Self::WorkerOutOfDescriptors => resources::take_workers(d).await,
            Self::DatabaseDiskFull => d.disk.fill(),
            Self::EmbeddedDiskFull => d.beside = Some(resources::Beside::start_and_fill().await),
            Self::FrameUnreadable => content::publish_nonsense(d).await,
            Self::EventRefused => content::poison(d, "22000", "refused").await,
            Self::EventFailsAlways => content::poison(d, "P0001", "repeatedly_failing").await,
            Self::FrameReturnedTooOften => content::return_too_often(d).await,
        }
    }

    /// What must be so while it is there.
    pub async fn holds(self, deployment: &Deployment) {
        match self {
            Self::ClockAhead | Self::ClockBehind => processes::no_stall(deployment).await,
            Self::WorkerStalls => processes::others_take_over(deployment).await,
            _ => {}
        }
    }

    /// Ends it. What it takes to be well again after that is the system's own affair.
    pub async fn heal(self, deployment: &mut Deployment) {
        let d = deployment;
        match self {
            Self::BrokerKilled | Self::BrokerRestarted => {
                showing::ingests_are_not_ready(d).await;
                d.broker.start_again().await;
            }
            Self::BrokerHangs => {
                showing::ingests_are_not_ready(d).await;
                d.broker.resume();
            }
            Self::BrokerCut
            | Self::BrokerReset
            | Self::BrokerSilent
            | Self::BrokerHalfOpen
            | Self::BrokerSlow => {
                d.broker_link.set(Link::Open);
            }
            Self::BrokerOutOfMemory => {
                showing::ingests_are_not_ready(d).await;
                showing::queue_drains(d).await;
                d.broker.alarm(false).await;
            }
            Self::BrokerOutOfDisk => d.broker.disk_alarm(false).await,
            Self::QueueFull => content::drain_queue(d),
            Self::DatabaseKilled | Self::DatabaseRestarted => {
                showing::api_is_unavailable(d).await;
                d.database.start_again().await;
            }
            Self::DatabaseHangs => {
                showing::api_is_unavailable(d).await;
                d.database.resume();
            }
            Self::DatabaseCut | Self::DatabaseReset | Self::DatabaseSilent | Self::DatabaseSlow => {
                d.database_link.set(Link::Open);
            }
            Self::DatabaseOutOfConnections | Self::DatabaseLocked => database::let_go(d).await,
            Self::DatabaseCannotSerialize => database::serializes_again(d).await,
            Self::SubscriberRefuses
            | Self::SubscriberResets
            | Self::SubscriberHangs
            | Self::SubscriberDrips
            | Self::SubscriberAnswersHugely
            | Self::SubscriberRedirects
            | Self::SubscriberWithBadTls
            | Self::SubscriberMoves
            | Self::DnsHangs => subscriber::heal(self, d).await,
            Self::OneOfAThousandDead | Self::AllOfAThousandDeadButOne => crowd::revive(d),
            Self::ClockAhead | Self::ClockBehind => processes::set_clocks_right(d),
            Self::WorkerStalls => processes::wake(d),
            Self::IngestOutOfDescriptors => resources::give_ingests_back(d),
            Self::WorkerOutOfDescriptors => resources::give_workers_back(d),
            // Where it could not write at all it has ended, and whoever runs it starts it again.
            Self::DatabaseDiskFull => {
                d.disk.free();
                d.database.start_again().await;
            }
            Self::EventRefused | Self::EventFailsAlways => content::no_poison(d).await,
            Self::FrameReturnedTooOften => content::start_workers(d).await,
            // Over once they are injected.
            Self::IngestKilled
            | Self::WorkersKilled
            | Self::ApiKilled
            | Self::RollingRestart
            | Self::QueueDeleted
            | Self::DatabaseEndsSessions
            | Self::DatabaseDeadlocks
            | Self::EmbeddedDiskFull
            | Self::FrameUnreadable => {}
        }
    }

    /// What must be so once all works again.
    pub async fn confirm(self, deployment: &mut Deployment) {
        let d = deployment;
        match self {
            Self::BrokerCut | Self::BrokerReset => network::did_end(&d.broker_link, d.marks.broker_ended),
            Self::DatabaseCut | Self::DatabaseReset => {
                network::did_end(&d.database_link, d.marks.database_ended);
            }
            Self::QueueFull => content::filling_arrives(d).await,
            Self::SubscriberRefuses
            | Self::SubscriberResets
            | Self::SubscriberHangs
            | Self::SubscriberDrips
            | Self::SubscriberAnswersHugely
            | Self::SubscriberRedirects
            | Self::SubscriberWithBadTls
            | Self::SubscriberMoves
            | Self::DnsHangs => subscriber::is_served_again(d).await,
            Self::OneOfAThousandDead | Self::AllOfAThousandDeadButOne => crowd::has_all(d).await,
            Self::ClockAhead | Self::ClockBehind => processes::no_storm(d),
            Self::WorkerStalls => processes::lease_was_lost(d).await,
            Self::EmbeddedDiskFull => {
                let beside = d.beside.take().expect("it was started");
                beside.free_and_settle().await;
            }
            Self::FrameUnreadable => content::nonsense_is_set_aside(d).await,
            Self::EventRefused | Self::EventFailsAlways => content::put_back(d).await,
            Self::FrameReturnedTooOften => content::dead_are_taken_in(d).await,
            // That all works again, and the ledger at the end, say all there is to say.
            _ => {}
        }
    }
}
