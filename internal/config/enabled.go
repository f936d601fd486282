package config

// Unattended is what may be done when nobody is there.
type Unattended struct {
	Enabled bool `toml:"enabled"`
}
