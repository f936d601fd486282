package change

// BootKernel is a kernel that a root can be booted with, and whether what it boots
// with recovers an update that was cut short.
type BootKernel struct {
	Kernel string `json:"kernel"`           // its path, or that of the boot entry
	Initrd string `json:"initrd,omitempty"` // "" where none belongs to it
	// Recovers is one of yes, no (the initrd lacks it), old (it reads another version of the
	// journal), none (there is no initrd), unknown.
	Recovers string `json:"recovers"`
	Detail   string `json:"detail,omitempty"` // why it is unknown
}

// SetupItem is one file of the recovery at boot.
type SetupItem struct {
	Path   string `json:"path"`
	Action string `json:"action"` // install, replace, remove, keep (it is as it should be, or somebody changed it)
	Detail string `json:"detail,omitempty"`
	For    string `json:"for,omitempty"`  // the neighbour for whom it is
	Diff   string `json:"diff,omitempty"` // of a neighbour's item: unified, as diff -u prints it
}

// Neighbour is something else that updates a machine, or looks after updates.
type Neighbour struct {
	Name   string `json:"name"`
	Now    string `json:"now"`              // what it does
	Keeps  string `json:"keeps"`            // what becomes of it where nothing is changed
	Change string `json:"change,omitempty"` // what setup --live-together changes about it
	Laid   bool   `json:"laid,omitempty"`   // that was agreed to, and is so
}

// SetupReport is what recovers an update that was cut short when a root boots, and
// what setup does about it.
type SetupReport struct {
	MessageType string       `json:"message_type"` // "report"
	Schema      int          `json:"schema"`
	Verb        string       `json:"verb"` // setup
	Root        string       `json:"root"`
	Result      string       `json:"result"`    // planned, done, nothing-to-do, pending (Commands are still to be run)
	Container   bool         `json:"container"` // the host of the container boots the kernel
	Tool        string       `json:"tool"`      // what makes the initrds: initramfs-tools, dracut, none
	Kernels     []BootKernel `json:"kernels"`
	Unit        string       `json:"unit"`      // enabled, disabled, missing
	Init        bool         `json:"init"`      // init= names liveupd-init on the running kernel's command line
	InitPath    string       `json:"init_path"` // where the root has it, or will have it
	Items       []SetupItem  `json:"items"`
	Commands    []string     `json:"commands"` // what makes the initrds anew: done, or still to be run
	Lacks       []string     `json:"lacks"`    // what no recovery covers
	// Neighbours are what else updates the root, or looks after updates.
	Neighbours []Neighbour `json:"neighbours"`
	Warnings   []string    `json:"warnings"`
}
