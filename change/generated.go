package change

// Generated is what the new tree's generators will make of it
// (systemd.generator(7)), compared with what they have made of the old one.
type Generated struct {
	// Files are the paths below /run whose content differs, by path.
	Files map[string]GeneratedFile
	// Unsure are generators of which it is not known beforehand what they will
	// make, and why.
	Unsure map[string]string
	// Unseen says why no generator could be looked at; "" where they were.
	Unseen string
}

// GeneratedFile is one file or link that differs.
type GeneratedFile struct {
	By   string // the generator's name
	From string // the changed path that it comes of, "" where that is not known
}
