//! Finds stop strings in text that arrives in pieces. What comes out does not
//! depend on where the pieces end; it knows neither tokens nor channels.

/// Holds back what may become a stop string, and cuts where one is complete.
#[derive(Clone, Debug)]
pub(super) struct StopMatcher {
    stops: Vec<String>,
    include_stop: bool,
    /// The end of the text so far that may be the beginning of a stop string.
    held: String,
}

/// What a piece of text brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Released {
    /// Text that is certain.
    pub(super) text: String,
    /// The stop string that ends it. Nothing may be pushed after that.
    pub(super) stopped_by: Option<String>,
}

impl StopMatcher {
    pub(super) fn new(stops: Vec<String>, include_stop: bool) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops, include_stop, held: String::new() }
    }

    /// Takes the next piece and gives what is certain.
    pub(super) fn push(&mut self, piece: String) -> Released {
        if self.stops.is_empty() {
            return Released { text: piece, stopped_by: None };
        }
        self.held.push_str(&piece);
        if let Some((start, stop)) = self.first_match() {
            let end = if self.include_stop { start + stop.len() } else { start };
            self.held.truncate(end);
            return Released { text: std::mem::take(&mut self.held), stopped_by: Some(stop) };
        }
        let kept = self.held.split_off(self.held.len() - self.num_held());
        Released { text: std::mem::replace(&mut self.held, kept), stopped_by: None }
    }

    /// The message is over: what was held back is text.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that is complete first; among those the one that began
    /// first. Reading letter by letter would find the same one.
    fn first_match(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|start| (start, stop)));
        found
            .min_by_key(|(start, stop)| (start + stop.len(), *start))
            .map(|(start, stop)| (start, stop.clone()))
    }

    /// How many bytes at the end begin a stop string.
    fn num_held(&self) -> usize {
        let held = self.held.as_bytes();
        let overlap = |stop: &String| {
            let longest = held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.stops.iter().map(overlap).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect(), false);
        let mut text = String::new();
        for &piece in pieces {
            let released = matcher.push(piece.to_owned());
            text.push_str(&released.text);
            if released.stopped_by.is_some() {
                return (text, released.stopped_by);
            }
        }
        text.push_str(&matcher.flush());
        (text, None)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_a_beginning_is_only_held_back() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["one E", "N", "d two"]), ("one ENd two".into(), None));
        assert_eq!(run(&["END"], &["one EN"]), ("one EN".into(), None));
    }

    #[test]
    fn the_stop_that_is_complete_first_cuts() {
        assert_eq!(run(&["abcd", "bc"], &["abcd"]), ("a".into(), Some("bc".into())));
        assert_eq!(run(&["bc", "abc"], &["abc"]), (String::new(), Some("abc".into())));
    }

    #[test]
    fn a_stop_may_stay() {
        let mut matcher = StopMatcher::new(vec!["。".into()], true);
        assert_eq!(matcher.push("好".into()).text, "好");
        let released = matcher.push("。x".into());
        assert_eq!((released.text.as_str(), released.stopped_by.as_deref()), ("。", Some("。")));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(
            text in "[ab€]{0,24}",
            stops in prop::collection::vec("[ab€]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(&stops, &pieces), run(&stops, &[&text]));
        }
    }
}
