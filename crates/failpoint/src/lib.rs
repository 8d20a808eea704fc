//! Named points in the code at which a process can be stopped dead, to prove that nothing depends on what comes after.
//!
//! The one rule: without the feature `enabled` every function here is empty, so a product carries no trace of them. With
//! it they do nothing either until the variable `HOLDFAST_FAILPOINTS` names a folder and a file `armed` lies in there:
//!
//! | file | what it does |
//! |---|---|
//! | `armed` with `record` | each point that is come by is appended to `points` |
//! | `armed` with `crash`, a point and a number, a line each | at the n-th time it is come by, the process is killed |
//! | `armed` with `machines`, a point and a number | at that time every machine that [`machines`] knows is ended, and `struck` is written |
//! | `fail` | each of its lines is a point whose act fails |

#![forbid(unsafe_code)]

#[cfg(feature = "enabled")]
mod armed;

use std::time::Duration;

/// Who called: the place in the source, when points are compiled in.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    #[cfg(feature = "enabled")]
    at: &'static std::panic::Location<'static>,
}

/// The caller of the function that calls this, if that has `#[track_caller]`.
#[inline]
#[track_caller]
pub fn caller() -> Caller {
    Caller {
        #[cfg(feature = "enabled")]
        at: std::panic::Location::caller(),
    }
}

/// A point that tells its callers apart.
#[inline]
pub fn hit_by(point: &str, caller: Caller) {
    #[cfg(feature = "enabled")]
    armed::hit(&format!("{point}@{}:{}", caller.at.file().trim_start_matches("crates/"), caller.at.line()));
    #[cfg(not(feature = "enabled"))]
    let _ = (point, caller);
}

/// The process may end here.
#[inline]
pub fn hit(point: &str) {
    #[cfg(feature = "enabled")]
    armed::hit(point);
    #[cfg(not(feature = "enabled"))]
    let _ = point;
}

/// True when the act at this point is to fail.
#[inline]
pub fn fails(point: &str) -> bool {
    #[cfg(feature = "enabled")]
    return armed::fails(point);
    #[cfg(not(feature = "enabled"))]
    {
        let _ = point;
        false
    }
}

/// Says how the machines of this process's node can be ended at a point. The first one who says so is asked.
#[inline]
pub fn machines(end: impl Fn() + Send + Sync + 'static) {
    #[cfg(feature = "enabled")]
    armed::machines(end);
    #[cfg(not(feature = "enabled"))]
    let _ = end;
}

/// A wait that is long only for the sake of real guests; short while points are in use.
#[inline]
pub fn patience(wait: Duration) -> Duration {
    #[cfg(feature = "enabled")]
    return armed::patience(wait);
    #[cfg(not(feature = "enabled"))]
    wait
}
