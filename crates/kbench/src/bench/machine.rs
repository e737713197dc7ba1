//! The GPU that is measured, and its clock.

use chorale_cuda::{Counters, Cuda, Driver, Gpu, GpuError, Mark};
use std::sync::Arc;
use std::time::Instant;

/// A GPU with a clock: its own, or the host's where it is emulated.
pub struct Machine {
    gpu: Arc<dyn Gpu>,
    driver: Option<Arc<Driver>>,
}

/// A point in the GPU's work.
pub(crate) enum Moment {
    Gpu(Mark),
    Host(Instant),
}

impl Machine {
    /// A real GPU.
    pub fn real(driver: Arc<Driver>) -> Self {
        Self { gpu: Arc::clone(&driver) as Arc<dyn Gpu>, driver: Some(driver) }
    }

    /// One that computes as soon as it is told to; its times mean nothing.
    pub fn emulated(gpu: Arc<dyn Gpu>) -> Self {
        Self { gpu, driver: None }
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
