// Package power holds the suites that pull the plug: an update is applied in a virtual machine, and the disk that it
// leaves at any time must become the old tree or the new one, whole, by what liveupd-recover does.
//
//   - replay: qemu logs what the guest writes and flushes. Each state that the disk had when a flush was
//     done is made again, and between two flushes such in which a part of the later writes is lost or torn.
//   - cuts: the machine goes on from a saved state and is killed, at each phase and at random times;
//     then all that it wrote, what it had flushed, and that and a part of the rest are tried.
//   - faults: a write or a flush fails. What the program says must then be what the disk holds.
//   - boot: a state is booted, and the machine recovers before it uses the tree.
//
// All the while another program in the guest calls fsync for files of its own, which makes ext4 and xfs write down a part of the
// renames: the suites count the disks that were a mixture before the recovery, and fail where there is none.
//
// LIVEUPD_LONG=1 tries all of it, LIVEUPD_SEED=N repeats a run's choices.
package power
