//! Fair shares: how much each key has been given, in tokens weighted by cost
//! and divided by the key's weight. It counts; who runs next is the queue's.
//!
//! This is the virtual token counter of Sheng et al. (arXiv:2401.00588). A key
//! that comes to the queue is lifted to the least of those that are there, so
//! nobody saves up a claim by asking for nothing; a debt stays until the others
//! have caught up.

use std::collections::{BTreeSet, HashMap};

use slab::Slab;

use crate::request::Share;

/// An account's place; valid while the account has sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Account(usize);

/// Tokens received, weighted; comparable between accounts.
pub(crate) type Spent = u128;

/// What one token of cost 1 adds to an account of weight 1: fine enough that
/// the largest weights still pay something.
const TOKEN: u128 = 1 << 32;

/// Accounts without sequences that are remembered for their debts.
const MAX_IDLE_ACCOUNTS: usize = 4096;

/// The accounts of all keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    accounts: Slab<Balance>,
    by_key: HashMap<u64, Account>,
    /// Accounts with sequences in the queue, by what they had spent when last
    /// looked at. Spending only grows, so the first is right once it is fresh.
    queued: BTreeSet<(Spent, Account)>,
    /// Accounts without sequences, by what they have spent.
    idle: BTreeSet<(Spent, Account)>,
    /// The most that the least-served account in the queue ever had.
    floor: Spent,
}

#[derive(Clone, Debug)]
struct Balance {
    key: u64,
    weight: u32,
    spent: Spent,
    num_sequences: u32,
    num_queued: u32,
    /// Under what this account stands in `queued`.
    listed: Spent,
}

impl Shares {
    /// Opens the account of a sequence that came in, or finds it.
    pub(crate) fn join(&mut self, share: Share) -> Account {
        let account = match self.by_key.get(&share.key) {
            Some(&account) => account,
            None => {
                let empty = Balance {
                    key: share.key,
                    weight: 1,
                    spent: 0,
                    num_sequences: 0,
                    num_queued: 0,
                    listed: 0,
                };
                let account = Account(self.accounts.insert(empty));
                self.by_key.insert(share.key, account);
                account
            }
        };
        let balance = &mut self.accounts[account.0];
        if balance.num_sequences == 0 {
            self.idle.remove(&(balance.spent, account));
        }
        balance.num_sequences += 1;
        balance.weight = share.weight.get();
        account
    }

    /// A sequence is over. Accounts that owe nothing are forgotten.
    pub(crate) fn leave(&mut self, account: Account) {
        let balance = &mut self.accounts[account.0];
        balance.num_sequences -= 1;
        if balance.num_sequences > 0 {
            return;
        }
        self.idle.insert((balance.spent, account));
        while let Some(&(spent, account)) = self.idle.first()
            && (spent <= self.floor || self.idle.len() > MAX_IDLE_ACCOUNTS)
        {
            self.idle.pop_first();
            let balance = self.accounts.remove(account.0);
            self.by_key.remove(&balance.key);
        }
    }

    /// One of the account's sequences came to the queue.
    pub(crate) fn queued(&mut self, account: Account) {
        self.raise_floor();
        let balance = &mut self.accounts[account.0];
        balance.num_queued += 1;
        if balance.num_queued == 1 {
            balance.spent = balance.spent.max(self.floor);
            balance.listed = balance.spent;
            self.queued.insert((balance.listed, account));
        }
    }

    /// One of the account's sequences left the queue.
    pub(crate) fn unqueued(&mut self, account: Account) {
        self.raise_floor();
        let balance = &mut self.accounts[account.0];
        balance.num_queued -= 1;
        if balance.num_queued == 0 {
            self.queued.remove(&(balance.listed, account));
        }
    }

    /// The account got `num_tokens` tokens.
    pub(crate) fn charge(&mut self, account: Account, num_tokens: u32, cost: u32) {
        let balance = &mut self.accounts[account.0];
        let cost = u128::from(num_tokens) * u128::from(cost);
        balance.spent += cost * TOKEN / u128::from(balance.weight);
    }

    pub(crate) fn spent(&self, account: Account) -> Spent {
        self.accounts[account.0].spent
    }

    fn raise_floor(&mut self) {
        while let Some(&(listed, account)) = self.queued.first() {
            let balance = &mut self.accounts[account.0];
            if balance.spent == listed {
                self.floor = self.floor.max(listed);
                return;
            }
            balance.listed = balance.spent;
            self.queued.pop_first();
            self.queued.insert((balance.listed, account));
        }
    }

    /// Panics unless the counts are those of the live sequences' accounts, each
    /// with whether it is in the queue.
    pub(crate) fn check(&self, sequences: &[(Account, bool)]) {
        for (index, balance) in &self.accounts {
            let own = sequences.iter().filter(|(account, _)| account.0 == index);
            assert_eq!(own.clone().count() as u32, balance.num_sequences);
            assert_eq!(own.filter(|(_, queued)| *queued).count() as u32, balance.num_queued);
            assert_eq!(self.queued.contains(&(balance.listed, Account(index))), balance.num_queued > 0);
            assert_eq!(self.idle.contains(&(balance.spent, Account(index))), balance.num_sequences == 0);
        }
        assert_eq!(self.accounts.len(), self.by_key.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn share(key: u64, weight: u32) -> Share {
        Share { key, weight: NonZeroU32::new(weight).unwrap() }
    }

    #[test]
    fn a_heavier_key_pays_less_for_a_token() {
        let mut shares = Shares::default();
        let (light, heavy) = (shares.join(share(1, 1)), shares.join(share(2, 4)));
        shares.charge(light, 10, 1);
        shares.charge(heavy, 20, 2);
        assert_eq!(shares.spent(light), shares.spent(heavy));
    }

    #[test]
    fn a_new_key_starts_at_the_least_served_in_the_queue() {
        let mut shares = Shares::default();
        let (first, second) = (shares.join(share(1, 1)), shares.join(share(2, 1)));
        shares.queued(first);
        shares.queued(second);
        shares.charge(first, 100, 1);
        shares.charge(second, 70, 1);
        let third = shares.join(share(3, 1));
        shares.queued(third);
        assert_eq!(shares.spent(third), 70 * TOKEN);
    }

    #[test]
    fn nobody_saves_up_by_asking_for_little() {
        let mut shares = Shares::default();
        let (busy, quiet) = (shares.join(share(1, 1)), shares.join(share(2, 1)));
        shares.queued(busy);
        shares.charge(busy, 100, 1);
        shares.queued(quiet);
        assert_eq!(shares.spent(quiet), 100 * TOKEN);
    }

    #[test]
    fn debts_outlive_a_keys_last_sequence_until_others_have_caught_up() {
        let mut shares = Shares::default();
        let (greedy, modest) = (shares.join(share(1, 1)), shares.join(share(2, 1)));
        shares.queued(modest);
        shares.charge(greedy, 50, 1);
        shares.leave(greedy);
        let back = shares.join(share(1, 1));
        assert_eq!(shares.spent(back), 50 * TOKEN);
        shares.leave(back);
        shares.charge(modest, 60, 1);
        shares.unqueued(modest);
        shares.leave(modest);
        shares.check(&[]);
        assert!(shares.accounts.is_empty(), "nobody owes anything");
    }

    #[test]
    fn debts_are_remembered_of_a_bounded_number_of_keys() {
        let mut shares = Shares::default();
        for key in 0..5000 {
            let account = shares.join(share(key, 1));
            shares.charge(account, 1 + key as u32, 1);
            shares.leave(account);
        }
        assert_eq!(shares.accounts.len(), MAX_IDLE_ACCOUNTS);
        assert!(shares.by_key.contains_key(&4999) && !shares.by_key.contains_key(&0));
    }
}
