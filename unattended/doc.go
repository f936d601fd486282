// Package unattended decides what a run may do that nobody watches: it is what the timer
// starts. It composes requests of the engine, and keeps what one night has to tell the next.
//
// A run goes through these steps, each of which is noted before it begins:
//
//  1. Take the lock: there is one run at a time. What a run that was cut off
//     had begun is settled first: the engine's recovery finishes or undoes the
//     transaction, and what came after the commit (canary, groups, a rollback)
//     is taken up where it was.
//  2. May it run now? Enabled, windows, power, network, nothing unfinished.
//     Where only the window is closed, and the caller waits, it is waited for.
//  3. Plan. Up to the commit everything may still say no: the same versions
//     have failed before and their time has not come, the window has closed,
//     the pre hook fails. Nothing has changed then.
//  4. Apply, with the first group's units restarted; settle; canary. Then the
//     next groups, each with its wait and its canary, as long as the window is
//     open. A failure takes all of it back, and the same versions are left
//     alone for a while that doubles with each failure.
//  5. What earlier runs had put off and what may be done now, also where no
//     update is pending.
//  6. A reboot, where one is pending and allowed, through logind.
//  7. Tell: post hook, state, journal, metrics, motd, mail.
//
// What it guarantees:
//
//   - A run whose window closes before the commit point changes nothing; after
//     it, it finishes what it began, and what does not fit stays put off.
//   - A killed run (SIGKILL, power) leaves a note, and the next start goes on
//     from there. A worker that was stopped (SIGSTOP) is ended after a while, and
//     recovered; the run itself is under systemd's watchdog.
//   - What a run keeps does not grow with the number of nights.
package unattended
