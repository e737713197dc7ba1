//! Does items with a GPU that is open: in a child, or in the process itself.

use super::events::{Event, Order};
use super::items::{self, Item, Task};
use super::watchdog::watch;
use super::whole::WHOLE;
use super::{Arguments, Ending, Stand};
use crate::bench::{Extent, Geometry, Machine, Measurement, Session};
use crate::checks::families;
use crate::circle;
use crate::demands::Demands;
use crate::failure::{Failure, Outcome};
use crate::goldens::GOLDENS;
use crate::primitives::PRIMITIVES;
use crate::report::{Check, MachineFacts, Report};
use chorale_cuda::{Gpu, GpuError};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// Serves the process that started this one.
pub(super) fn serve(stand: &dyn Stand, arguments: &Arguments) -> anyhow::Result<Ending> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    // Nobody is left to be served once the input ends, and a GPU that hangs must not keep it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::abort();
    });
    let mut report = Report::to_parent();
    let started = Instant::now();
    let machine = match stand.open(arguments.device, order.one_by_one) {
        Ok(machine) => machine,
        Err(error) => {
            let is_absent = matches!(error, GpuError::Absent { .. } | GpuError::NoKernels { .. });
            Event::Refused { reason: error.to_string(), is_absent }.tell();
            return Ok(Ending::Lost);
        }
    };
    report.machine(MachineFacts::new(machine.gpu().facts(), machine.num_kernels(), started.elapsed()));
    let _watchdog = watch(machine.ledger(), arguments.patience(), |text| Event::Hung(text).tell());
    let (geometry, extent) = (stand.geometry(), items::extent(stand, arguments));
    let mut worker = Worker::new(stand, arguments, &machine, (&geometry, &extent));
    if let Some(limits) = order.limits {
        worker.session.set_limits(limits);
    }
    let all = items::items(stand, arguments, machine.gpu().facts());
    for item in order.items.iter().filter_map(|name| all.iter().find(|item| item.full_name() == *name)) {
        Event::Began(item.full_name()).tell();
        worker.run(item, &mut report);
        if let Some(limits) = worker.session.new_limits() {
            Event::Limits(limits).tell();
        }
        if let Err(error) = machine.gpu().wait() {
            Event::Lost(error.to_string()).tell();
            return Ok(Ending::Lost);
        }
        Event::Done(item.full_name()).tell();
    }
    Ok(Ending::Well)
}

/// Does all in this process.
pub(super) fn here(
    stand: &dyn Stand,
    arguments: &Arguments,
    items: &[Item],
    deadline: Instant,
    report: &mut Report,
) -> anyhow::Result<Ending> {
    if items.is_empty() {
        return Ok(Ending::Well);
    }
    let started = Instant::now();
    let machine = stand.open(arguments.device, arguments.one_by_one)?;
    report.machine(MachineFacts::new(machine.gpu().facts(), machine.num_kernels(), started.elapsed()));
    let _watchdog = watch(machine.ledger(), arguments.patience(), |text| {
        eprintln!("error: {text}");
        // The driver would wait for the kernel at any other end.
        std::process::abort();
    });
    let (geometry, extent) = (stand.geometry(), items::extent(stand, arguments));
    let mut worker = Worker::new(stand, arguments, &machine, (&geometry, &extent));
    let mut ending = Ending::Well;
    for item in items {
        if ending == Ending::Lost {
            report.skip(&item.full_name(), "the context was lost before");
        } else if Instant::now() >= deadline {
            report.skip(&item.full_name(), "no time was left");
        } else {
            worker.run(item, report);
            if let Err(error) = machine.gpu().wait() {
                report.fail(&item.full_name(), error.to_string());
                ending = Ending::Lost;
            }
        }
    }
    Ok(ending)
}

/// An open GPU, and what is kept between items.
struct Worker<'a> {
    stand: &'a dyn Stand,
    arguments: &'a Arguments,
    machine: &'a Machine,
    demands: Demands,
    session: Session<'a>,
}

impl<'a> Worker<'a> {
    fn new(
        stand: &'a dyn Stand,
        arguments: &'a Arguments,
        machine: &'a Machine,
        (geometry, extent): (&'a Geometry, &'a Extent),
    ) -> Self {
        let demands = Demands { seed: arguments.seed, ..stand.demands(arguments.quick) };
        let session = Session::new(machine, geometry, extent);
        Self { stand, arguments, machine, demands, session }
    }

    /// Does an item; what goes wrong is in the report.
    fn run(&mut self, item: &Item, report: &mut Report) {
        let started = Instant::now();
        let found = catch_unwind(AssertUnwindSafe(|| self.attempt(item, report)));
        let found = found.unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)));
        if item.is_check() {
            report.check(Check {
                family: item.family.to_owned(),
                name: item.name.clone(),
                seconds: started.elapsed().as_secs_f64(),
                failure: found.err().map(|failure| failure.to_string()),
            });
        } else if let Err(failure) = found {
            report.fail(&item.full_name(), failure.to_string());
        }
    }

    fn attempt(&mut self, item: &Item, report: &mut Report) -> Outcome {
        let machine = self.machine;
        match &item.task {
            Task::Primitive(place) => PRIMITIVES[*place].run(machine.gpu(), self.stand.tolerance()),
            Task::Check(family, place) => {
                families()[*family].checks[*place].run(&mut machine.device(), &self.demands)
            }
            Task::Whole(golden, place) => WHOLE[*place].1(machine, &GOLDENS[*golden]),
            Task::Part(part) => self.session.run(part, report),
            Task::Circle(count) => self.exchange(*count, report),
        }
    }

    /// Ranks of this process exchange with each other.
    fn exchange(&self, count: usize, report: &mut Report) -> Outcome {
        let has_each = self.stand.list()?.len() >= count;
        let own = self.arguments.device;
        let mut others = Vec::new();
        for other in (0..).filter(|&ordinal| ordinal != own || !has_each).take(count.max(1) - 1) {
            let ordinal = if has_each { other } else { own };
            others.push(self.stand.open(ordinal, false)?);
        }
        let machines = std::iter::once(self.machine).chain(&others);
        let gpus: Vec<Arc<dyn Gpu>> = machines.map(|machine| Arc::clone(machine.gpu())).collect();
        let whose = if has_each { "a GPU each" } else { "one GPU, so times mean nothing" };
        for exchanged in circle::run(&gpus, circle::EXCHANGES).map_err(Failure)? {
            report.measured(Measurement {
                what: "small exchange".to_owned(),
                of: format!("{} bytes from each of {count} ranks, {whose}", exchanged.bytes),
                microseconds: exchanged.microseconds,
                ..Measurement::default()
            });
        }
        Ok(())
    }
}
