package change

// TrustKey is one key that a root trusts, or does not.
type TrustKey struct {
	ID    string `json:"id,omitempty"`   // 16 hexadecimal digits
	File  string `json:"file,omitempty"` // in the folder of keys; "" for one that is only listed as revoked
	Key   string `json:"key,omitempty"`  // the public key in base64
	State string `json:"state"`          // trusted, revoked, unusable
	// Time is when it was revoked, in seconds since the epoch; Reason why, or why the file cannot be used.
	Time   int64  `json:"time,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// KeyReport is what came of a verb on keys, or the list of them.
type KeyReport struct {
	MessageType string     `json:"message_type"` // "report"
	Schema      int        `json:"schema"`
	Verb        string     `json:"verb"` // key add, key list, key remove, key revoke
	Root        string     `json:"root"`
	Dir         string     `json:"dir"`              // the folder of keys
	Result      string     `json:"result,omitempty"` // done, nothing-to-do
	Keys        []TrustKey `json:"keys"`
	Warnings    []string   `json:"warnings"`
}

// SignReport is what keygen or sign has made.
type SignReport struct {
	MessageType string   `json:"message_type"` // "report"
	Schema      int      `json:"schema"`
	Verb        string   `json:"verb"` // keygen, sign
	Key         string   `json:"key"`  // its ID, 16 hexadecimal digits
	Public      string   `json:"public,omitempty"`
	Files       []string `json:"files"` // that were written
	Name        string   `json:"name,omitempty"`
	Version     string   `json:"version,omitempty"`
	Sequence    uint64   `json:"sequence,omitempty"`
	Expires     int64    `json:"expires,omitempty"` // seconds since the epoch
	Signed      int64    `json:"signed,omitempty"`  // seconds since the epoch
	Revokes     []string `json:"revokes,omitempty"`
	Warnings    []string `json:"warnings"`
}
