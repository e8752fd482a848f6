//! The one place where control meets requests: the policy in force.

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tidegate_engine::policy::Policy;

/// Makes a publisher and a reader of the same policy.
pub fn handover(first: Policy) -> (PolicyPublisher, PolicyReader) {
    let current = Arc::new(ArcSwap::from_pointee(first));
    (
        PolicyPublisher {
            current: Arc::clone(&current),
            retired: RefCell::default(),
        },
        PolicyReader { current },
    )
}

/// Replaces the policy in force, whole.
///
/// Not `Clone`: the control loop owns the only one, so nothing else can publish.
#[derive(Debug)]
pub struct PolicyPublisher {
    current: Arc<ArcSwap<Policy>>,
    /// Policies that a request may still be reading. They are let go here: to free ten thousand rules takes
    /// milliseconds, which no request shall wait.
    retired: RefCell<Vec<Arc<Policy>>>,
}

impl PolicyPublisher {
    /// Puts a policy in force for every request that begins from now on.
    pub fn publish(&self, policy: Policy) {
        let before = self.current.swap(Arc::new(policy));
        self.retired.borrow_mut().push(before);
    }

    /// Puts a policy in force for requests under other settings than before, which read it from the
    /// reader that is returned. Requests under the settings of before keep their last policy.
    pub fn move_on(&mut self, policy: Policy) -> PolicyReader {
        let current = Arc::new(ArcSwap::from_pointee(policy));
        let before = std::mem::replace(&mut self.current, Arc::clone(&current));
        self.retired.borrow_mut().push(before.load_full());
        PolicyReader { current }
    }

    /// Lets go what nobody reads any more. To be called now and then.
    pub fn let_go(&self) {
        let mut retired = self.retired.borrow_mut();
        retired.retain(|policy| Arc::strong_count(policy) > 1);
    }

    /// Returns the policy in force.
    pub fn current(&self) -> Arc<Policy> {
        self.current.load_full()
    }
}

/// Reads the policy in force. Reading takes no lock and writes nothing that workers share.
#[derive(Clone, Debug)]
pub struct PolicyReader {
    current: Arc<ArcSwap<Policy>>,
}

impl PolicyReader {
    /// Calls `with` with the policy in force. A request calls this once, so it sees one policy.
    pub fn read<T>(&self, with: impl FnOnce(&Policy) -> T) -> T {
        with(&self.current.load())
    }

    /// Returns the policy in force, to keep.
    pub fn current(&self) -> Arc<Policy> {
        self.current.load_full()
    }
}
