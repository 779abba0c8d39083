//! The catalogue: every fault that the system has to survive, as data.

use Part::{Api, Beside, Broker, Database, Ingest, Subscriber, Workers};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    IngestKilled,
    WorkersKilled,
    ApiKilled,
    RollingRestart,
    BrokerKilled,
    BrokerRestarted,
    BrokerHangs,
    BrokerCut,
    BrokerReset,
    BrokerSilent,
    BrokerHalfOpen,
    BrokerSlow,
    BrokerOutOfMemory,
    BrokerOutOfDisk,
    QueueFull,
    QueueDeleted,
    DatabaseKilled,
    DatabaseRestarted,
    DatabaseHangs,
    DatabaseCut,
    DatabaseReset,
    DatabaseSilent,
    DatabaseSlow,
    DatabaseOutOfConnections,
    DatabaseEndsSessions,
    DatabaseDeadlocks,
    DatabaseCannotSerialize,
    DatabaseLocked,
    SubscriberRefuses,
    SubscriberResets,
    SubscriberHangs,
    SubscriberDrips,
    SubscriberAnswersHugely,
    SubscriberRedirects,
    SubscriberWithBadTls,
    SubscriberMoves,
    DnsHangs,
    OneOfAThousandDead,
    AllOfAThousandDeadButOne,
    ClockAhead,
    ClockBehind,
    WorkerStalls,
    IngestOutOfDescriptors,
    WorkerOutOfDescriptors,
    DatabaseDiskFull,
    EmbeddedDiskFull,
    FrameUnreadable,
    EventRefused,
    EventFailsAlways,
    FrameReturnedTooOften,
}

/// What a fault touches. Two that touch the same are never injected at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Ingest,
    Workers,
    Api,
    Broker,
    Database,
    Subscriber,
    Beside,
}

/// A row of the table of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Kill,
    Stop,
    Broker,
    Queue,
    Database,
    Subscriber,
    Crowd,
    Clock,
    Stall,
    Resources,
    Content,
}

impl Row {
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Stop,
        Self::Broker,
        Self::Queue,
        Self::Database,
        Self::Subscriber,
        Self::Crowd,
        Self::Clock,
        Self::Stall,
        Self::Resources,
        Self::Content,
    ];

    /// As the table has it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL, again and again",
            Self::Stop => "SIGTERM under load",
            Self::Broker => "broker away",
            Self::Queue => "broker or queue refuses",
            Self::Database => "PostgreSQL away",
            Self::Subscriber => "subscriber misbehaves",
            Self::Crowd => "one of a thousand, or all but one",
            Self::Clock => "clock steps an hour",
            Self::Stall => "worker stalls past its lease",
            Self::Resources => "descriptors or disk run out",
            Self::Content => "frame or event at fault",
        }
    }
}

/// What producers may see of a fault beside a 202.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// A 503 with `Retry-After`.
    pub refusals: bool,
    /// A closed connection.
    pub closed: bool,
}

const NOTHING: Seen = Seen {
    refusals: false,
    closed: false,
};
const REFUSALS: Seen = Seen {
    refusals: true,
    closed: false,
};
const CLOSED: Seen = Seen {
    refusals: false,
    closed: true,
};
const BOTH: Seen = Seen {
    refusals: true,
    closed: true,
};

/// What is known of a fault before it is injected.
#[derive(Debug, Clone, Copy)]
pub struct About {
    pub name: &'static str,
    pub row: Row,
    pub parts: &'static [Part],
    pub seen: Seen,
    /// The least that it lasts, in seconds, whatever the seed says.
    pub least_seconds: u64,
}

const fn about(name: &'static str, row: Row, parts: &'static [Part], seen: Seen) -> About {
    About {
        name,
        row,
        parts,
        seen,
        least_seconds: 0,
    }
}

const fn lasting(least_seconds: u64, about: About) -> About {
    About {
        least_seconds,
        ..about
    }
}

/// How many seconds a clock is wrong: longer than a lease lives, and anything that looks at what is due pauses.
const STORM: u64 = 13;

/// Every fault, and what is known of it.
const CATALOGUE: [(Fault, About); 50] = [
    (
        Fault::IngestKilled,
        about("ingest-killed", Row::Kill, &[Ingest, Broker, Database], BOTH),
    ),
    (
        Fault::WorkersKilled,
        about("workers-killed", Row::Kill, &[Workers, Broker, Database], NOTHING),
    ),
    (
        Fault::ApiKilled,
        about("api-killed", Row::Kill, &[Api, Broker, Database], NOTHING),
    ),
    (
        Fault::RollingRestart,
        about(
            "rolling-restart",
            Row::Stop,
            &[Ingest, Workers, Api, Broker, Database],
            CLOSED,
        ),
    ),
    (
        Fault::BrokerKilled,
        about("broker-killed", Row::Broker, &[Broker], REFUSALS),
    ),
    (
        Fault::BrokerRestarted,
        about("broker-restarted", Row::Broker, &[Broker], REFUSALS),
    ),
    (
        Fault::BrokerHangs,
        lasting(3, about("broker-hangs", Row::Broker, &[Broker], REFUSALS)),
    ),
    (
        Fault::BrokerCut,
        about("broker-cut", Row::Broker, &[Broker], REFUSALS),
    ),
    (
        Fault::BrokerReset,
        about("broker-reset", Row::Broker, &[Broker], REFUSALS),
    ),
    (
        Fault::BrokerSilent,
        lasting(3, about("broker-silent", Row::Broker, &[Broker], REFUSALS)),
    ),
    (
        Fault::BrokerHalfOpen,
        lasting(3, about("broker-half-open", Row::Broker, &[Broker], REFUSALS)),
    ),
    (
        Fault::BrokerSlow,
        about("broker-slow", Row::Broker, &[Broker], REFUSALS),
    ),
    (
        Fault::BrokerOutOfMemory,
        about(
            "broker-out-of-memory",
            Row::Queue,
            &[Broker, Workers, Database],
            REFUSALS,
        ),
    ),
    (
        Fault::BrokerOutOfDisk,
        about("broker-out-of-disk", Row::Queue, &[Broker], REFUSALS),
    ),
    (
        Fault::QueueFull,
        about("queue-full", Row::Queue, &[Broker, Workers, Database], REFUSALS),
    ),
    (
        Fault::QueueDeleted,
        about(
            "queue-deleted",
            Row::Queue,
            &[Broker, Workers, Ingest, Database],
            REFUSALS,
        ),
    ),
    (
        Fault::DatabaseKilled,
        about("database-killed", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseRestarted,
        about("database-restarted", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseHangs,
        lasting(3, about("database-hangs", Row::Database, &[Database], NOTHING)),
    ),
    (
        Fault::DatabaseCut,
        about("database-cut", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseReset,
        about("database-reset", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseSilent,
        lasting(3, about("database-silent", Row::Database, &[Database], NOTHING)),
    ),
    (
        Fault::DatabaseSlow,
        about("database-slow", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseOutOfConnections,
        about("database-out-of-connections", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseEndsSessions,
        about("database-ends-sessions", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::DatabaseDeadlocks,
        about(
            "database-deadlocks",
            Row::Database,
            &[Database, Broker, Workers],
            NOTHING,
        ),
    ),
    (
        Fault::DatabaseCannotSerialize,
        about(
            "database-cannot-serialize",
            Row::Database,
            &[Database, Broker, Workers],
            NOTHING,
        ),
    ),
    (
        Fault::DatabaseLocked,
        about("database-locked", Row::Database, &[Database], NOTHING),
    ),
    (
        Fault::SubscriberRefuses,
        about("subscriber-refuses", Row::Subscriber, &[Subscriber], NOTHING),
    ),
    (
        Fault::SubscriberResets,
        about("subscriber-resets", Row::Subscriber, &[Subscriber], NOTHING),
    ),
    (
        Fault::SubscriberHangs,
        about("subscriber-hangs", Row::Subscriber, &[Subscriber], NOTHING),
    ),
    (
        Fault::SubscriberDrips,
        about("subscriber-drips", Row::Subscriber, &[Subscriber], NOTHING),
    ),
    (
        Fault::SubscriberAnswersHugely,
        about(
            "subscriber-answers-100-mb",
            Row::Subscriber,
            &[Subscriber],
            NOTHING,
        ),
    ),
    (
        Fault::SubscriberRedirects,
        about("subscriber-redirects", Row::Subscriber, &[Subscriber], NOTHING),
    ),
    (
        Fault::SubscriberWithBadTls,
        about(
            "subscriber-with-bad-tls",
            Row::Subscriber,
            &[Subscriber, Api, Database],
            NOTHING,
        ),
    ),
    (
        Fault::SubscriberMoves,
        about(
            "subscriber-moves",
            Row::Subscriber,
            &[Subscriber, Workers],
            NOTHING,
        ),
    ),
    (
        Fault::DnsHangs,
        about("dns-hangs", Row::Subscriber, &[Subscriber, Workers], NOTHING),
    ),
    // A thousand attempts at once can keep a small machine from confirming in time.
    (
        Fault::OneOfAThousandDead,
        about(
            "one-of-a-thousand-dead",
            Row::Crowd,
            &[Subscriber, Workers, Broker, Database, Api, Ingest],
            REFUSALS,
        ),
    ),
    (
        Fault::AllOfAThousandDeadButOne,
        about(
            "all-of-a-thousand-dead-but-one",
            Row::Crowd,
            &[Subscriber, Workers, Broker, Database, Api, Ingest],
            REFUSALS,
        ),
    ),
    // What is sent again because a server is away would look like a storm.
    (
        Fault::ClockAhead,
        lasting(
            STORM,
            about(
                "clock-ahead",
                Row::Clock,
                &[Ingest, Workers, Api, Broker, Database],
                NOTHING,
            ),
        ),
    ),
    (
        Fault::ClockBehind,
        lasting(
            STORM,
            about(
                "clock-behind",
                Row::Clock,
                &[Ingest, Workers, Api, Broker, Database],
                NOTHING,
            ),
        ),
    ),
    // A lease lives 12 seconds.
    (
        Fault::WorkerStalls,
        lasting(
            15,
            about("worker-stalls", Row::Stall, &[Workers, Database, Broker], NOTHING),
        ),
    ),
    (
        Fault::IngestOutOfDescriptors,
        about(
            "ingest-out-of-descriptors",
            Row::Resources,
            &[Ingest, Broker, Database],
            BOTH,
        ),
    ),
    (
        Fault::WorkerOutOfDescriptors,
        about(
            "worker-out-of-descriptors",
            Row::Resources,
            &[Workers, Subscriber],
            NOTHING,
        ),
    ),
    (
        Fault::DatabaseDiskFull,
        about(
            "database-disk-full",
            Row::Resources,
            &[Database, Workers, Api, Ingest],
            NOTHING,
        ),
    ),
    (
        Fault::EmbeddedDiskFull,
        about("embedded-disk-full", Row::Resources, &[Beside], NOTHING),
    ),
    (
        Fault::FrameUnreadable,
        about("frame-unreadable", Row::Content, &[Broker, Database], NOTHING),
    ),
    (
        Fault::EventRefused,
        about(
            "event-refused",
            Row::Content,
            &[Database, Broker, Workers],
            NOTHING,
        ),
    ),
    (
        Fault::EventFailsAlways,
        about(
            "event-fails-always",
            Row::Content,
            &[Database, Broker, Workers],
            NOTHING,
        ),
    ),
    (
        Fault::FrameReturnedTooOften,
        about(
            "frame-returned-too-often",
            Row::Content,
            &[Broker, Workers, Database],
            NOTHING,
        ),
    ),
];

impl Fault {
    pub fn all() -> impl Iterator<Item = Self> {
        CATALOGUE.iter().map(|(fault, _)| *fault)
    }

    /// What is known of it.
    pub fn about(self) -> &'static About {
        let found = CATALOGUE.iter().find(|(fault, _)| *fault == self);
        &found.expect("every fault is in the catalogue").1
    }

    pub fn name(self) -> &'static str {
        self.about().name
    }

    /// The fault of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::all().find(|fault| fault.name() == name)
    }

    /// Whether a server is away or refuses, so that who needs it has to wait.
    pub fn takes_a_server(self) -> bool {
        matches!(self.about().row, Row::Broker | Row::Database)
            || matches!(
                self,
                Self::BrokerOutOfMemory | Self::BrokerOutOfDisk | Self::DatabaseDiskFull
            )
    }

    /// Whether it touches nothing that the other touches.
    pub fn may_overlap(self, other: Self) -> bool {
        let parts = other.about().parts;
        self.about().parts.iter().all(|part| !parts.contains(part))
    }
}
