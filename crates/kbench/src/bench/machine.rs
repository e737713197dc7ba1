//! The GPU that is measured, and its clock.

use crate::watched::{Ledger, Watched};
use chorale_cuda::{Counters, Cuda, Driver, Gpu, GpuError, Mark};
use std::sync::Arc;
use std::time::Instant;

/// A GPU with a clock: its own, or the host's where it is emulated.
pub struct Machine {
    gpu: Arc<dyn Gpu>,
    driver: Option<Arc<Driver>>,
    ledger: Arc<Ledger>,
}

/// A point in the GPU's work.
pub(crate) enum Moment {
    Gpu(Mark),
    Host(Instant),
}

impl Machine {
    /// A real GPU, whose kernels run one by one if asked for.
    pub fn real(driver: Arc<Driver>, one_by_one: bool) -> Self {
        let ledger = Arc::default();
        let gpu = Watched::new(Arc::clone(&driver) as Arc<dyn Gpu>, &ledger, one_by_one);
        Self { gpu, driver: Some(driver), ledger }
    }

    /// One that computes as soon as it is told to; its times mean nothing.
    pub fn emulated(gpu: Arc<dyn Gpu>, one_by_one: bool) -> Self {
        let ledger = Arc::default();
        Self { gpu: Watched::new(gpu, &ledger, one_by_one), driver: None, ledger }
    }

    /// What it was told last.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Kernels that it loaded, and how many of them may begin while others still run.
    pub(crate) fn num_kernels(&self) -> (usize, usize) {
        let driver = self.driver.as_ref();
        driver.map_or((0, 0), |driver| (driver.kernels().len(), driver.num_dependent_kernels()))
    }

    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    pub(crate) fn device(&self) -> Cuda {
        Cuda::new(Arc::clone(&self.gpu))
    }

    /// Behind all that was handed over.
    pub(crate) fn mark(&self) -> Result<Moment, GpuError> {
        match &self.driver {
            Some(driver) => Ok(Moment::Gpu(driver.mark()?)),
            None => Ok(Moment::Host(Instant::now())),
        }
    }

    /// Seconds between two moments, waited for.
    pub(crate) fn seconds(&self, start: &Moment, end: &Moment) -> Result<f64, GpuError> {
        let _calling = self.ledger.calling("milliseconds_between");
        match (&self.driver, start, end) {
            (Some(driver), Moment::Gpu(start), Moment::Gpu(end)) => {
                Ok(f64::from(driver.milliseconds_between(start, end)?) / 1e3)
            }
            (_, Moment::Host(start), Moment::Host(end)) => {
                Ok(end.saturating_duration_since(*start).as_secs_f64())
            }
            _ => Err(GpuError::Driver { call: "mark", reason: "moments of two clocks".to_owned() }),
        }
    }

    /// Whether launches that come again are replayed as graphs from now on.
    pub(crate) fn use_graphs(&self, on: bool) {
        if let Some(driver) = &self.driver {
            driver.use_graphs(on);
        }
    }

    /// How launches were made so far.
    pub(crate) fn counters(&self) -> Counters {
        self.driver.as_ref().map(|driver| driver.counters()).unwrap_or_default()
    }
}
