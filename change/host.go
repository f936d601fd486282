package change

// SysctlLine is one line of the sysctl.d files, in the order of effect.
type SysctlLine struct {
	// Key with dots as separators, as sysctl(8) prints it; it may hold the wildcards of glob(7).
	Key   string
	Value string
	File  string
	// Lenient: the line begins with "-": a failure to set it is none.
	Lenient bool
	// Exclude: a "-" and no value: wildcards do not set this key.
	Exclude bool
}

// UdevMatch is what one udev rule names of the devices that it is for. Lists
// are alternatives with the wildcards of glob(7); an empty one names all.
type UdevMatch struct {
	Subsystems []string
	Names      []string // KERNEL==
	// Action is the event that the rule is for: "change", or "add" where it
	// is for those alone.
	Action string
}

// UdevRule is one rule: its text with blanks folded, and what it names.
type UdevRule struct {
	Text  string
	Match UdevMatch
	// Idle: no event that can be asked for runs it (ACTION=="remove").
	Idle bool
	// Flow: it is a LABEL= or GOTO= and decides for which devices others run.
	Flow bool
}

// FstabEntry is one line of fstab(5).
type FstabEntry struct {
	What, Where, Type, Options string
}

// HostConfig is what a tree says of the host as a whole: the settings that
// systemd's early programs apply at boot. Only what an update touches is read.
type HostConfig struct {
	// Effective names, by kind (sysctl, modules-load, binfmt, tmpfiles,
	// sysusers, udev, hwdb) and file name, the path that counts: a name in
	// /etc hides the same name in /run, /usr/local/lib and /usr/lib. A name
	// that is masked is not among them.
	Effective map[string]map[string]string
	Sysctl    []SysctlLine
	Modules   map[string]string // module, "-" folded to "_", to the file that names it
	// Binfmt are the rules of binfmt.d by name: the line as the kernel takes it.
	Binfmt     map[string]string
	BinfmtFile map[string]string
	Udev       map[string][]UdevRule // by path
	Fstab      []FstabEntry
	// Crypttab are the volumes of crypttab(5) by name: the rest of the line.
	Crypttab map[string]string
}

// HostFacts is the running kernel, as far as an update's settings touch it.
type HostFacts struct {
	Kernel string // its release; "" unknown
	// Sysctl are the present values of the keys that an old or new setting
	// names, wildcards expanded; a key that the kernel lacks is absent.
	Sysctl map[string]string
	// Modules is, for each asked one, loaded, builtin, available or absent.
	Modules  map[string]string
	AppArmor bool // it is enabled in the kernel
	SELinux  bool // a policy is loaded
	// Initrd are the paths of which an initrd of this root holds a copy, of
	// those that change.
	Initrd []string
	// Rebuild is the command that makes the initrds anew; nil where no tool does.
	Rebuild []string
}

// Effect is a step on the host as a whole that is no unit's, and why.
type Effect struct {
	// Do is one of sysusers, tmpfiles, modules-load, hwdb, udev-reload,
	// udev-trigger, sysctl, binfmt, apparmor, selinux, initrd.
	Do string `json:"do"`
	// Target is what it acts on: a setting, a module, file names.
	Target  string   `json:"target"`
	Undo    string   `json:"undo"`
	Reasons []Reason `json:"reasons"`
}
