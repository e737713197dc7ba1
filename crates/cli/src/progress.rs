//! What a person sees who waits for bytes: bars on a terminal, a line of log
//! every few seconds elsewhere. It counts what it is told and measures nothing.

use chorale_hub::Event;
use chorale_model::LoadProgress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The bars of this process.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// Draws on standard error, if that is a terminal.
    pub(crate) fn new() -> Self {
        Self { bars: MultiProgress::new() }
    }

    /// Runs `write` while no bar is on the screen.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.bars.is_hidden() { write() } else { self.bars.suspend(write) }
    }

    /// Waits for reports of a load.
    pub(crate) fn load(&self) -> LoadBar {
        LoadBar { progress: self.clone(), meter: None }
    }

    /// Waits for events of a download, or of `demo`'s unpacking.
    pub(crate) fn fetch(&self, what: Fetch) -> FetchBar {
        FetchBar { progress: self.clone(), what, state: Mutex::new(None) }
    }
}

/// Weights on their way to a device. Dropping it takes the bar away.
#[derive(Debug)]
pub(crate) struct LoadBar {
    progress: Progress,
    meter: Option<Meter>,
}

impl LoadBar {
    /// Takes what the model reports: how far loading has come.
    pub(crate) fn on(&mut self, report: LoadProgress) {
        let meter =
            self.meter.get_or_insert_with(|| Meter::new(&self.progress, "loading", report.total_bytes));
        meter.set(report.bytes, &format!("{}/{} tensors", report.tensors, report.total_tensors));
    }

    /// Everything is loaded: takes the bar away and leaves a line of log.
    pub(crate) fn finish(self) {
        if let Some(meter) = self.meter {
            meter.finish("loaded");
        }
    }
}

/// Where files come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fetch {
    /// The hub.
    Download,
    /// The archive in this binary.
    Unpack,
}

/// Files on their way into a cache.
#[derive(Debug)]
pub(crate) struct FetchBar {
    progress: Progress,
    what: Fetch,
    state: Mutex<Option<Fetched>>,
}

#[derive(Debug)]
struct Fetched {
    meter: Meter,
    num_files: usize,
    num_files_done: usize,
    bytes_by_file: BTreeMap<String, u64>,
}

impl FetchBar {
    /// Takes what the hub reports; any thread may call it.
    pub(crate) fn on(&self, event: Event<'_>) {
        let mut state = lock(&self.state);
        if let Event::Planned { num_files, num_bytes } = event {
            let doing = match self.what {
                Fetch::Download => "downloading",
                Fetch::Unpack => "unpacking",
            };
            let meter = Meter::new(&self.progress, doing, num_bytes);
            *state = Some(Fetched { meter, num_files, num_files_done: 0, bytes_by_file: BTreeMap::new() });
        }
        let Some(fetched) = state.as_mut() else {
            return;
        };
        match event {
            Event::Planned { .. } => {}
            Event::FileStarted { file, num_bytes_done, .. } => {
                fetched.bytes_by_file.insert(file.to_owned(), num_bytes_done);
                fetched.meter.forgive(num_bytes_done);
            }
            Event::FileAdvanced { file, num_bytes_done } => {
                fetched.bytes_by_file.insert(file.to_owned(), num_bytes_done);
            }
            Event::FileFinished { .. } => fetched.num_files_done += 1,
            Event::Finished => {
                if let Some(fetched) = state.take() {
                    fetched.meter.finish(match self.what {
                        Fetch::Download => "downloaded",
                        Fetch::Unpack => "unpacked",
                    });
                }
                return;
            }
        }
        let done = fetched.bytes_by_file.values().sum();
        let files = format!("{}/{} files", fetched.num_files_done, fetched.num_files);
        fetched.meter.set(done, &files);
    }
}

/// Counts bytes towards a total and shows how far it is.
#[derive(Debug)]
struct Meter {
    what: &'static str,
    bar: ProgressBar,
    is_drawn: bool,
    num_bytes: u64,
    started: Instant,
    count: Mutex<Count>,
}

#[derive(Debug)]
struct Count {
    bytes: u64,
    /// Were here before we started, so they say nothing of speed.
    bytes_free: u64,
    last_line: Instant,
}

impl Meter {
    fn new(progress: &Progress, what: &'static str, num_bytes: u64) -> Self {
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:32}] {decimal_bytes}/{decimal_total_bytes}, {msg}, {decimal_bytes_per_sec}, {eta} left",
        );
        let bar = ProgressBar::new(num_bytes).with_prefix(what).with_message("starting");
        let bar = match style {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        };
        let started = Instant::now();
        Self {
            what,
            bar: progress.bars.add(bar),
            is_drawn: !progress.bars.is_hidden(),
            num_bytes,
            started,
            count: Mutex::new(Count { bytes: 0, bytes_free: 0, last_line: started }),
        }
    }

    fn set(&self, bytes: u64, beside: &str) {
        let mut count = lock(&self.count);
        count.bytes = bytes;
        self.show(&mut count, beside);
    }

    /// Leaves bytes out of the speed.
    fn forgive(&self, bytes: u64) {
        lock(&self.count).bytes_free += bytes;
        if self.is_drawn && bytes > 0 {
            self.bar.inc(bytes);
            self.bar.reset_eta();
        }
    }

    fn show(&self, count: &mut Count, beside: &str) {
        if self.is_drawn {
            self.bar.set_position(count.bytes);
            self.bar.set_message(beside.to_owned());
            return;
        }
        if count.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        count.last_line = Instant::now();
        let new = count.bytes.saturating_sub(count.bytes_free);
        let left = self.num_bytes.saturating_sub(count.bytes);
        tracing::info!(
            bytes = count.bytes,
            bytes_total = self.num_bytes,
            done = beside,
            seconds_left = seconds_left(new, left, self.started.elapsed()),
            "{}",
            self.what
        );
    }

    fn finish(self, done: &'static str) {
        self.bar.finish_and_clear();
        if self.is_drawn {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::info!(bytes = self.num_bytes, seconds = (seconds * 1e3).round() / 1e3, "{done}");
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// At the speed so far; `None` before anything has come.
fn seconds_left(new_bytes: u64, left_bytes: u64, elapsed: Duration) -> Option<u64> {
    (new_bytes > 0).then(|| (elapsed.as_secs_f64() * left_bytes as f64 / new_bytes as f64).round() as u64)
}

/// A thread that panicked while counting leaves a count that is good enough.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_speed_so_far() {
        assert_eq!(seconds_left(0, 100, Duration::from_secs(1)), None);
        assert_eq!(seconds_left(50, 100, Duration::from_secs(10)), Some(20));
        assert_eq!(seconds_left(100, 0, Duration::from_secs(10)), Some(0));
    }

    #[test]
    fn a_resumed_and_restarted_file_is_counted_once() {
        let bar = Progress::new().fetch(Fetch::Download);
        bar.on(Event::Planned { num_files: 2, num_bytes: 100 });
        bar.on(Event::FileStarted { file: "a", num_bytes: 60, num_bytes_done: 50 });
        bar.on(Event::FileAdvanced { file: "a", num_bytes_done: 0 });
        bar.on(Event::FileAdvanced { file: "a", num_bytes_done: 60 });
        bar.on(Event::FileFinished { file: "a" });
        let bytes =
            |bar: &FetchBar| lock(&bar.state).as_ref().map(|fetched| lock(&fetched.meter.count).bytes);
        assert_eq!(bytes(&bar), Some(60));
        bar.on(Event::Finished);
        assert_eq!(bytes(&bar), None);
    }

    #[test]
    fn loading_shows_the_last_report() {
        let mut load = Progress::new().load();
        for tensors in [0, 3, 10] {
            load.on(LoadProgress {
                bytes: 100 * tensors,
                total_bytes: 1000,
                tensors: tensors as usize,
                total_tensors: 10,
            });
        }
        assert_eq!(load.meter.as_ref().map(|meter| lock(&meter.count).bytes), Some(1000));
        load.finish();
    }
}
