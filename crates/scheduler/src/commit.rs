//! What a step brings back: tokens are appended, pages become findable or
//! return, sequences end. Nothing is planned here.

use chorale_plan::{Sample, StepOutput, StepPlan};

use crate::plan::SliceInFlight;
use crate::progress::Progress;
use crate::scheduler::Scheduler;
use crate::sequence::Phase;

impl Scheduler {
    /// Takes in what the oldest step in flight sampled.
    ///
    /// What was planned for a sequence that has ended meanwhile is dropped. A
    /// step that was in flight when everything was uncomputed does nothing.
    ///
    /// # Panics
    ///
    /// If the plan is not the oldest in flight, or the samples are not those it
    /// asked for: the caller checks what workers send.
    pub fn commit(&mut self, plan: &StepPlan, output: &StepOutput) -> Vec<Progress> {
        if plan.step <= self.void_step {
            return Vec::new();
        }
        let step = self.in_flight.pop_front().expect("a step is committed that was not planned");
        assert_eq!((plan.step, output.step), (step.step, step.step), "steps are committed in order");
        let mut samples = output.samples.iter();
        let mut progress = Vec::with_capacity(output.samples.len());
        for slice in step.slices {
            let sample = slice.is_sampled.then(|| samples.next().expect("a sample is missing"));
            self.commit_slice(slice, sample, &mut progress);
        }
        assert!(samples.next().is_none(), "there are more samples than were asked for");
        progress
    }

    fn commit_slice(&mut self, slice: SliceInFlight, sample: Option<&Sample>, progress: &mut Vec<Progress>) {
        let slot = slice.slot;
        let sequence = &mut self.sequences[slot];
        assert!(sample.is_none_or(|sample| sample.sequence == sequence.id), "a sample is another sequence's");
        sequence.num_in_flight -= 1;
        if sequence.phase == Phase::Over {
            if sequence.num_in_flight == 0 {
                self.homes[sequence.home].num_leaving -= 1;
                self.return_pages(slot);
                self.sequences.remove(slot);
            }
            return;
        }

        sequence.num_computed = slice.end;
        let home = &mut self.homes[sequence.home];
        if self.config.prefix_caching && sequence.wants_prefix_caching() {
            home.publish(sequence, self.size);
        }
        home.return_behind_window(sequence, self.size);
        if let Some(sample) = sample {
            self.shares.charge(sequence.account, 1, self.config.output_token_cost);
            let end = sequence.push(sample.token, &self.config.eos_tokens);
            progress.push(Progress::Sampled(sample.clone()));
            if let Some(reason) = end {
                progress.push(self.finish(slot, reason));
                return;
            }
        }
        if sequence.phase == Phase::Leaving && sequence.num_in_flight == 0 {
            self.homes[sequence.home].num_leaving -= 1;
            self.requeue(slot);
        }
    }
}
