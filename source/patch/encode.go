package patch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// encoder makes frames.
type encoder struct {
	name string
	pack func(ctx context.Context, text, dict []byte) ([]byte, error)
}

// findEncoder takes the zstd program where it is there.
func findEncoder(ctx context.Context, o Options) (encoder, error) {
	level := o.Level
	if level == 0 {
		level = 19
	}
	if level < 1 || level > 22 {
		return encoder{}, fmt.Errorf("level %d: zstd has levels 1 to 22", o.Level)
	}
	program := o.Zstd
	if program == "" {
		for _, dir := range []string{"/usr/bin", "/usr/local/bin", "/bin"} {
			if name := filepath.Join(dir, "zstd"); executable(name) {
				program = name
				break
			}
		}
	}
	if program == "" || program == "-" {
		return encoder{"built in", builtIn}, nil
	}
	out, err := exec.CommandContext(ctx, program, "-q", "-V").Output()
	if err != nil {
		return encoder{}, fmt.Errorf("cannot ask %s for its version: %w", program, err)
	}
	name := fmt.Sprintf("zstd %s -%d", strings.TrimSpace(string(out)), level)
	return encoder{name, func(ctx context.Context, text, dict []byte) ([]byte, error) {
		return byProgram(ctx, program, level, text, dict)
	}}, nil
}

func executable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func builtIn(_ context.Context, text, dict []byte) ([]byte, error) {
	return encodeAll(text, dict, zstd.SpeedBestCompression)
}

func encodeAll(text, dict []byte, level zstd.EncoderLevel) ([]byte, error) {
	o := []zstd.EOption{
		zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true),
		zstd.WithWindowSize(windowFor(len(text) + len(dict))),
	}
	if len(dict) > 0 {
		o = append(o, zstd.WithEncoderDictRaw(0, dict))
	}
	e, err := zstd.NewWriter(nil, o...)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.EncodeAll(text, nil), nil
}

// windowFor is the power of two that a match may reach back, over text and dictionary.
func windowFor(n int) int {
	w := 1 << 20
	for w < n && w < maxWindow {
		w <<= 1
	}
	return w
}

// quickSize is what text packs to, roughly.
func quickSize(text, dict []byte) (int, error) {
	b, err := encodeAll(text, dict, zstd.SpeedBestCompression)
	return len(b), err
}

// byProgram has zstd make a frame, one thread: several would cut it elsewhere.
func byProgram(ctx context.Context, program string, level int, text, dict []byte) (_ []byte, err error) {
	dir, err := os.MkdirTemp("", "liveupd-diff-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for zstd: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in, base, out := filepath.Join(dir, "text"), filepath.Join(dir, "dict"), filepath.Join(dir, "frame")
	args := []string{"-q", "--no-progress", "--no-check", "--single-thread", fmt.Sprintf("-%d", level), "--ultra", "-o", out}
	if len(dict) > 0 {
		if err := os.WriteFile(base, dict, 0o600); err != nil {
			return nil, fmt.Errorf("cannot write for zstd: %w", err)
		}
		args = append(args, "--patch-from="+base)
	}
	if err := os.WriteFile(in, text, 0o600); err != nil {
		return nil, fmt.Errorf("cannot write for zstd: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, append(args, in)...)
	cmd.Env = []string{"LC_ALL=C"}
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(b))))
	}
	frame, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	return frame, nil
}
