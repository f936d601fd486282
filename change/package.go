package change

// Package is one package that an update of the package manager changes.
type Package struct {
	Name string `json:"name"`
	Arch string `json:"arch"`
	From string `json:"from,omitempty"` // "" where it was not installed
	To   string `json:"to,omitempty"`   // "" where it goes
}

// Conffile is a configuration file of a package that the machine changed and that the
// update brings another version of.
type Conffile struct {
	Path string `json:"path"`
	Kept bool   `json:"kept"` // the machine's version stays; else the package's is taken
	Diff string `json:"diff"` // from the one that stays to the one beside it, unified
}
