//! How much is asked for here of an organization's bucket, and how much is taken: averages over the last seconds.

/// Over how long they are averaged, nearly, in nanoseconds.
const MEMORY: f64 = 2e9;
/// Less than this, a thousandth of the refill, is nothing any more.
const NOTHING: f64 = 1e-3;

/// Parts of the refill: 1 is as fast as the bucket refills.
#[derive(Debug)]
pub(super) struct Demand {
    /// Events since the last measurement.
    asked: i64,
    taken: i64,
    measured_at: i64,
    wanted: f64,
    took: f64,
}

impl Demand {
    /// None, from now on.
    pub(super) const fn from(now: i64) -> Self {
        Self {
            asked: 0,
            taken: 0,
            measured_at: now,
            wanted: 0.0,
            took: 0.0,
        }
    }

    /// So many were asked for and taken; or not, after all.
    pub(super) const fn took(&mut self, events: i64) {
        self.asked += events;
        self.taken += events;
    }

    /// So many were asked for in vain.
    pub(super) const fn refused(&mut self, events: i64) {
        self.asked += events;
    }

    /// How much was asked for, at the last measurement.
    pub(super) const fn wanted(&self) -> f64 {
        self.wanted
    }

    /// How much was taken, at the last measurement.
    pub(super) const fn taken(&self) -> f64 {
        self.took
    }

    /// Whether there is any.
    pub(super) fn is_there(&self) -> bool {
        self.asked > 0 || self.wanted > 0.0
    }

    /// Whether it is far more than it was: the measurement says too little.
    #[expect(clippy::cast_precision_loss, reason = "an average")]
    pub(super) fn has_grown(&self, cost: i64, now: i64) -> bool {
        let passed = (now - self.measured_at).max(0) as f64;
        (self.asked * cost) as f64 > 2.0 * self.wanted * passed + 5e8
    }

    /// Takes what came since the last time into the averages.
    #[expect(clippy::cast_precision_loss, reason = "averages")]
    pub(super) fn measure(&mut self, cost: i64, now: i64) {
        let passed = (now - self.measured_at).max(1) as f64;
        let (former, new) = ((-passed / MEMORY).exp(), -(-passed / MEMORY).exp_m1());
        let average = |before: f64, events: i64| {
            let average = before * former + (events * cost) as f64 / passed * new;
            if average < NOTHING { 0.0 } else { average }
        };
        self.wanted = average(self.wanted, self.asked);
        self.took = average(self.took, self.taken);
        (self.asked, self.taken, self.measured_at) = (0, 0, now);
    }
}
