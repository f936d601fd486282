package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// wrongType is how the decoder words a value of another type than the setting's: in Go's names
// for both, which tell an administrator nothing.
var wrongType = regexp.MustCompile(`^cannot (?:decode|store) .* (?:of type (\S+)|in a (struct))$`)

// malformed tells what is wrong at a position of a file, and what belongs there.
func malformed(bad *toml.DecodeError) error {
	text := strings.TrimPrefix(bad.Error(), "toml: ")
	m := wrongType.FindStringSubmatch(text)
	key := strings.Join(bad.Key(), ".")
	if m == nil || key == "" {
		return errors.New(text)
	}
	want := "another type of value"
	switch kind := m[1] + m[2]; {
	case kind == "struct":
		want = "one table, [" + key + "]"
	case kind == "bool":
		want = "true or false, without quotes"
	case kind == "string":
		want = "a text in quotes"
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		want = "a whole number, without quotes"
	case strings.HasPrefix(kind, "[]"):
		want = "a list, in brackets: [\"...\"]"
	}
	return fmt.Errorf("%s takes %s", key, want)
}

// unknown names the settings of a file that nobody knows, in a line.
func unknown(strict *toml.StrictMissingError) string {
	var list []string
	for i := range strict.Errors {
		row, col := strict.Errors[i].Position()
		list = append(list, fmt.Sprintf("%s (line %d, column %d)", strings.Join(strict.Errors[i].Key(), "."), row, col))
	}
	if len(list) == 1 {
		return "setting " + list[0]
	}
	return "settings " + strings.Join(list, ", ")
}
