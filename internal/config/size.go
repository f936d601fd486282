package config

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSize reads a number of bytes with K, M, G or T, powers of 1024; "" is 0.
func ParseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	shift := strings.IndexByte("KMGT", s[len(s)-1]&^0x20) + 1
	number := s
	if shift > 0 {
		number = s[:len(s)-1]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<(62-10*shift) {
		return 0, fmt.Errorf("no size: %q", s)
	}
	return n << (10 * shift), nil
}

// CacheBytes is CacheMax in bytes: 0 where it is not said, -1 for nothing at all.
func (c *Config) CacheBytes() int64 {
	if c.CacheMax == "0" {
		return -1
	}
	n, err := ParseSize(c.CacheMax)
	if err != nil {
		return 0 // Load has refused it
	}
	return n
}
