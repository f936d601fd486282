package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"aead.dev/minisign"
)

// Secret is a key that signs.
type Secret struct{ key minisign.PrivateKey }

// GenerateSecret makes a new key. Its ID comes of the key itself, other than minisign's.
func GenerateSecret() (*Secret, error) {
	_, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("cannot make a key: %w", err)
	}
	return &Secret{key}, nil
}

// ID is the key's.
func (s *Secret) ID() KeyID { return KeyID(s.key.ID()) }

// Public is the text of the file with the public key.
func (s *Secret) Public() []byte {
	return publicText(s.key.Public().(minisign.PublicKey)) // by its documentation
}

// Text is the text of the secret key's file: encrypted with a password, or plain where it is empty.
// To encrypt takes 1 GiB of memory for some seconds: what a guess costs, too.
func (s *Secret) Text(password string) ([]byte, error) {
	text, err := s.key.MarshalText()
	if password != "" {
		text, err = minisign.EncryptKey(password, s.key)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot write the secret key: %w", err)
	}
	return append(text, '\n'), nil
}

// ReadSecret reads the file of a secret key, minisign's too. password is asked for where it is
// encrypted.
func ReadSecret(text []byte, password func() (string, error)) (*Secret, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	text = bytes.TrimSpace(text)
	s := new(Secret)
	if !minisign.IsEncrypted(text) {
		if err := s.key.UnmarshalText(text); err != nil {
			return nil, clean(err)
		}
		return s, nil
	}
	word, err := password()
	if err != nil {
		return nil, err
	}
	if s.key, err = minisign.DecryptKey(word, text); err != nil {
		return nil, errors.New("the password is wrong, or the file is damaged")
	}
	return s, nil
}

// Sign reads r to its end and signs it: prehashed, as minisign does. The same key, text and
// comment give the same bytes.
func (s *Secret) Sign(r io.Reader, comment string) ([]byte, error) {
	if !utf8.ValidString(comment) || strings.ContainsFunc(comment, func(c rune) bool { return unicode.IsControl(c) && c != '\t' }) {
		return nil, fmt.Errorf("the comment %q holds control characters or is not UTF-8", comment)
	}
	in := minisign.NewReader(r)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	return in.SignWithComments(s.key, comment, "signature from liveupd, key "+s.ID().String()), nil
}
