package tarball

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// hostile are archives that must be refused. want is a part of the message that
// names the entry; plain: exit 1 and not 6, because honest archives can be so.
type hostile struct {
	name  string
	data  []byte
	want  string
	plain bool
	o     Options
}

func leaves() []hostile {
	evil := func(name string) []byte { return archive(file("usr/ok", "x"), file(name, "evil")) }
	return []hostile{
		{name: "absolute", data: evil("/etc/passwd"), want: `"/etc/passwd" is an absolute name`},
		{name: "absolute twice", data: evil("//etc/passwd"), want: "is an absolute name"},
		{name: "absolute folder", data: archive(dir("/")), want: `"/" is an absolute name`},
		{name: "dots first", data: evil("../outside/file"), want: `"../outside/file" has a component .. and could leave the tree`},
		{name: "dots inside", data: evil("usr/../../outside/file"), want: "could leave the tree"},
		{name: "dots that stay", data: evil("usr/../file"), want: "could leave the tree"},
		{name: "dots last", data: archive(dir("usr/..")), want: "could leave the tree"},
		{name: "dots by prefix", data: archive(item{name: "file", prefix: "../outside", typ: '0'}), want: `"../outside/file" has a component ..`},
		{name: "absolute by prefix", data: archive(item{name: "file", prefix: "/etc", typ: '0'}), want: `"/etc/file" is an absolute name`},
		{name: "absolute by pax", data: archive(item{name: "ok", typ: '0', pax: []string{"path=/etc/shadow"}}), want: `"/etc/shadow" is an absolute name`},
		{name: "dots by long name", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: "a/../../x\x00"}, file("ok", "")), want: `"a/../../x" has a component ..`},
		{name: "symlink to outside", data: archive(symlink("a", "../outside"), file("a/file", "evil")), want: `"a/file" lies below "a", which is a symlink`},
		{name: "symlink to the root", data: archive(symlink("a", "/"), file("a/etc/x", "evil")), want: `"a/etc/x" lies below "a", which is a symlink`},
		{name: "symlink inside", data: archive(dir("b"), symlink("a", "b"), file("a/x", "evil")), want: "which is a symlink of the archive"},
		{name: "symlink deep", data: archive(dir("b"), symlink("b/a", "."), file("b/a/b/a/x", "evil")), want: `"b/a/b/a/x" lies below "b/a", which is a symlink`},
		{name: "symlink, then folder", data: archive(symlink("a", "../outside"), dir("a"), file("a/file", "evil")), want: `"a" is there twice, as symlink and as directory`},
		{name: "folder, then symlink", data: archive(dir("a"), symlink("a", "../outside"), file("a/file", "evil")), want: `"a" is there twice, as directory and as symlink`},
		{name: "implied, then symlink", data: archive(file("a/x", ""), symlink("a", "../outside")), want: `"a" is there twice`},
		{name: "file through symlink", data: archive(symlink("a", "../outside/file"), file("a", "evil")), want: `"a" is there twice, as symlink and as file`},
		{name: "hard link to a symlink, then through it", data: archive(symlink("a", "../outside"), hardlink("b", "a"), file("b/x", "")), want: `"b/x" lies below "b", which is a hard link`},
		{name: "hard link outside", data: archive(hardlink("a", "../outside/file")), want: `"a" is a hard link to "../outside/file", which has a component ..`},
		{name: "hard link absolute", data: archive(hardlink("a", "/etc/shadow")), want: `"a" is a hard link to "/etc/shadow", which is an absolute name`},
		{name: "hard link missing", data: archive(hardlink("a", "b")), want: `"a" is a hard link to "b", which is not in the archive before it`},
		{name: "hard link later", data: archive(hardlink("a", "b"), file("b", "")), want: "which is not in the archive before it"},
		{name: "hard link to itself", data: archive(hardlink("a", "a")), want: "which is not in the archive before it"},
		{name: "hard link through a symlink", data: archive(symlink("s", "../outside"), hardlink("a", "s/file")), want: `"a" is a hard link to "s/file", which leads through the symlink "s"`},
		{name: "hard link to a folder", data: archive(dir("d"), hardlink("a", "d")), want: "which is a folder"},
		{name: "hard link to the root", data: archive(hardlink("a", ".")), want: "which is a folder"},
		{name: "hard link below a file", data: archive(file("f", ""), hardlink("a", "f/x")), want: "is not in the archive before it"},
		{name: "hard link nowhere", data: archive(hardlink("a", "")), want: `is a hard link to "", which is an empty name`},
		{name: "hard link over a file", data: archive(file("f", ""), file("a", ""), hardlink("a", "f")), want: `"a" is there twice, as file and as hard link`},
		{name: "hard link as the root", data: archive(file("f", ""), hardlink("./", "f")), want: "ends with a slash"},
		{name: "root as a symlink", data: archive(symlink(".", "../outside")), want: `"." is the root itself, as a symlink`},
		{name: "root as a hard link", data: archive(file("f", ""), hardlink(".", "f")), want: `"." is the root itself, as a hard link`},
		{name: "store", data: archive(dir(".liveupd")), want: `".liveupd" lies in .liveupd, which is liveupd's own`},
		{name: "in the store", data: evil("./.liveupd/tx/1/state"), want: "lies in .liveupd"},
		{name: "a store below", data: evil("var/.liveupd/x"), want: "lies in .liveupd"},
		{name: "link into the store", data: archive(file("a", ""), hardlink("b", ".liveupd/a")), want: "which lies in .liveupd"},
	}
}

func names() []hostile {
	long := strings.Repeat("n", 256)
	deep := strings.Repeat("d/", 257)
	path := strings.Repeat(strings.Repeat("p", 200)+"/", 21)
	return []hostile{
		{name: "twice", data: archive(file("a", "1"), file("a", "2")), want: `"a" is there twice, as file and as file`},
		{name: "twice, spelled otherwise", data: archive(file("b/a", "1"), file("./b//./a", "2")), want: `is there twice`},
		{name: "folders that differ", data: archive(dir("a"), item{name: "a", typ: '5', mode: 0o700}), want: `"a" is there twice, with different`},
		{name: "roots that differ", data: archive(dir("./"), item{name: "./", typ: '5', mode: 0o700}), want: `"./" is there twice, with different`},
		{name: "below a file", data: archive(file("a", ""), file("a/b", "")), want: `"a/b" lies below "a", which is a file of the archive`},
		{name: "below a fifo", data: archive(item{name: "a", typ: '6'}, file("a/b", "")), want: "which is a fifo of the archive"},
		{name: "file where a folder is", data: archive(file("a/b", ""), file("a", "")), want: `"a" is there twice, as directory and as file`},
		{name: "empty name", data: archive(file("", "")), want: `"" is an empty name`},
		{name: "name with a slash behind", data: archive(symlink("a/", "b")), want: `"a/" is a symlink whose name ends with a slash`},
		{name: "fifo with a slash behind", data: archive(item{name: "a/", typ: '6'}), want: "ends with a slash"},
		{name: "old folder with a body", data: archive(item{name: "a/", typ: 0, magic: "-", body: "x"}), want: "is a folder with a body"},
		{name: "NUL in a pax name", data: archive(item{name: "a", typ: '0', pax: []string{"path=a\x00b"}}), want: `NUL byte in the record "path"`},
		{name: "NUL in a pax link", data: archive(item{name: "a", typ: '2', pax: []string{"linkpath=a\x00b"}}), want: "NUL byte"},
		{name: "NUL in a long name", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: "a\x00b"}, file("a", "")), want: "is a long name that holds a NUL byte"},
		{name: "NUL in a sparse name", data: archive(item{name: "a", typ: '0', pax: []string{"GNU.sparse.name=a\x00b"}}), want: "NUL byte in its name"},
		{name: "component too long", data: archive(item{name: "a", typ: '0', pax: []string{"path=d/" + long}}), want: "has a component of 256 bytes"},
		{name: "path too long", data: archive(item{name: "a", typ: '0', pax: []string{"path=" + path + "x"}}), want: "bytes long, more than the 4095"},
		{name: "too deep", data: archive(item{name: "a", typ: '0', pax: []string{"path=" + deep}}), want: "lies more than 256 folders deep"},
		{name: "symlink to nothing", data: archive(symlink("a", "")), want: `"a" is a symlink to ""`},
		{name: "symlink target too long", data: archive(item{name: "a", typ: '2', pax: []string{"linkpath=" + strings.Repeat("t", 4096)}}), want: "is a symlink to a name of 4096 bytes"},
		{name: "two long names", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: "a\x00"}, item{name: "L", typ: 'L', magic: gnuMagic, body: "b\x00"}, file("c", "")), want: "two long names for one entry"},
		{name: "long name and another in pax", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: "a\x00"}, item{name: "x", typ: '0', pax: []string{"path=b"}}), want: "has two long names, of which readers take different ones"},
		{name: "newline and escape in a message", data: archive(file("a\n\x1b[31mred\u202e\xff", ""), file("a\n\x1b[31mred\u202e\xff", "")), want: `"a\n\x1b[31mred\u202e\xff" is there twice`},
		{name: "long name in a message", data: archive(item{name: "a", typ: '0', pax: []string{"path=/" + strings.Repeat("x", 3000)}}), want: `xxx"..."xxx`},
		{name: "whiteout of ..", data: archive(file("a/.wh...", "")), o: Options{Layer: true}, want: "is a whiteout of no name"},
		{name: "whiteout of .", data: archive(file("a/.wh..", "")), o: Options{Layer: true}, want: "is a whiteout of no name"},
		{name: "whiteout of nothing", data: archive(file("a/.wh.", "")), o: Options{Layer: true}, want: "is a whiteout of no name"},
		{name: "whiteout of the store", data: archive(file(".wh..liveupd", "")), o: Options{Layer: true}, want: "removes .liveupd"},
		{name: "below a whiteout", data: archive(file(".wh.a/b", "")), o: Options{Layer: true}, want: "lies below a whiteout"},
		{name: "link to what is left out", data: archive(file("a", ""), hardlink("b", "a")), o: Options{Skip: func(p string) bool { return p == "/a" }}, want: "which is left out", plain: true},
	}
}

func damages() []hostile {
	whole := archive(file("a", "content"), file("b", strings.Repeat("x", 2000)))
	flip := append([]byte(nil), whole...)
	flip[1024+3] ^= 1
	return []hostile{
		{name: "empty", data: nil, want: "it is empty"},
		{name: "text", data: []byte(strings.Repeat("no archive\n", 100)), want: "it is no tar archive"},
		{name: "short text", data: []byte("no archive\n"), want: "it is no tar archive: it holds 11 bytes"},
		{name: "no end mark", data: entries(file("a", "")), want: `it has no end mark at byte 512 of the tar stream, behind "a"`},
		{name: "truncated in a header", data: whole[:700+512], want: "the archive is truncated"},
		{name: "truncated in a body", data: whole[:1800], want: `truncated at byte 1800 of the tar stream, behind "b"`},
		{name: "truncated in the padding", data: entries(file("a", "content"))[:900], want: "truncated"},
		{name: "truncated in an extended header", data: archive(item{name: "a", typ: '0', pax: []string{"path=" + strings.Repeat("y", 900)}})[:800], want: "truncated"},
		{name: "checksum", data: flip, want: `a header with a wrong checksum at byte 1536 of the tar stream, behind "a"`},
		{name: "checksum of the first", data: archive(item{name: "a", typ: '0', chksum: "000001\x00 "}), want: "it is no tar archive"},
		{name: "checksum is no number", data: archive(file("x", ""), item{name: "a", typ: '0', chksum: "zzzzzz\x00 "}), want: "wrong checksum"},
		{name: "garbage behind the end", data: append(archive(file("a", "")), "garbage"...), want: "truncated"},
		{name: "block of garbage behind the end", data: append(archive(file("a", "")), strings.Repeat("g", 512)...), want: `something follows the end of the archive at byte 2048 of the tar stream, behind "a"`},
		{name: "archive behind the end", data: append(archive(file("a", "")), archive(file("b", ""))...), want: "something follows the end"},
		{name: "lone block of zeros inside", data: append(append(entries(file("a", "")), make([]byte, 512)...), archive(file("b", ""))...), want: "something follows the end"},
		{name: "size beyond the end", data: archive(item{name: "a", typ: '0', size: "00000077777"}), want: `truncated at byte 1536 of the tar stream, behind "a"`},
		{name: "size is no number", data: archive(item{name: "a", typ: '0', size: "0000000000z"}), want: `"a" has a size that is no number`},
		{name: "size negative", data: archive(item{name: "a", typ: '0', size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}), want: `"a" has the size -1`},
		{name: "size of 70 bits", data: archive(item{name: "a", typ: '0', size: "\x80\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff"}), want: "is a number of more than 64 bits"},
		{name: "size of 64 bits", data: archive(item{name: "a", typ: '0', size: "\x80\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"}), want: "is a number of more than 63 bits"},
		{name: "size in pax negative", data: archive(item{name: "a", typ: '0', pax: []string{"size=-1"}}), want: `"a" has the size "-1", which is no number`},
		{name: "size in pax huge", data: archive(item{name: "a", typ: '0', pax: []string{"size=99999999999999999999"}}), want: "which is no number"},
		{name: "size of the largest number", data: archive(item{name: "a", typ: '0', pax: []string{"size=9223372036854775807"}}), want: "more than the limit of"},
		{name: "symlink with a body", data: archive(item{name: "a", typ: '2', link: "b", body: "x"}), want: `"a" is a symlink with a body of 1 bytes`},
		{name: "hard link with a body", data: archive(file("f", ""), item{name: "a", typ: '1', link: "f", body: "x"}), want: "is a hard link with a body"},
		{name: "folder with a body", data: archive(item{name: "a", typ: '5', size: "00000001000"}), want: "is a folder with a body of 512 bytes"},
		{name: "fifo with a body", data: archive(item{name: "a", typ: '6', body: "x"}), want: "is a fifo with a body"},
		{name: "device with a body", data: archive(item{name: "a", typ: '3', body: "x"}), want: "is a device with a body"},
		{name: "user id -1", data: archive(item{name: "a", typ: '0', pax: []string{"uid=4294967295"}}), want: `"a" has the uid "4294967295"`},
		{name: "user id negative", data: archive(item{name: "a", typ: '0', uid: "\xff\xff\xff\xff\xff\xff\xff\xfe"}), want: `"a" has the user id -2, which Linux cannot have`},
		{name: "user id huge", data: archive(item{name: "a", typ: '0', uid: "\x80\x00\x00\x01\x00\x00\x00\x00"}), want: "has the user id 4294967296"},
		{name: "group id huge in pax", data: archive(item{name: "a", typ: '0', pax: []string{"gid=5000000000"}}), want: `has the gid "5000000000"`},
		{name: "user id is no number", data: archive(item{name: "a", typ: '0', uid: "root"}), want: "has a user id that is no number"},
		{name: "mode negative", data: archive(item{name: "a", typ: '0', mode: -1 << 20}), want: "has a mode that is no number"},
		{name: "time huge", data: archive(item{name: "a", typ: '0', mtime: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"}), want: `"a" has the time "9223372036854775807", which lies outside of the years`},
		{name: "time huge in pax", data: archive(item{name: "a", typ: '0', pax: []string{"mtime=99999999999"}}), want: "which lies outside of the years"},
		{name: "time of garbage in pax", data: archive(item{name: "a", typ: '0', pax: []string{"mtime=1.2.3"}}), want: "which is no time"},
		{name: "time of a word in pax", data: archive(item{name: "a", typ: '0', pax: []string{"mtime=yesterday"}}), want: "which is no time"},
		{name: "device number huge", data: archive(item{name: "a", typ: '4', major: "0010000"}), want: "has the device number 4096"},
		{name: "device number negative", data: archive(item{name: "a", typ: '4', minor: "\xff\xff\xff\xff\xff\xff\xff\xff"}), want: "has the device number -1"},
	}
}

func headers() []hostile {
	px := func(body string) []byte { return archive(item{name: "x", typ: 'x', body: body}, file("a", "")) }
	return []hostile{
		{name: "pax without a length", data: px("path=a\n"), want: "an extended header holds a record with"},
		{name: "pax with length 0", data: px("0 path=a\n"), want: "a record with a wrong length"},
		{name: "pax with length of itself", data: px("2 \n"), want: "a record with a wrong length"},
		{name: "pax beyond its end", data: px("99 path=a\n"), want: "a record with a wrong length"},
		{name: "pax of the largest length", data: px("99999999999999999999 path=a\n"), want: "a record with"},
		{name: "pax without a newline", data: px("9 path=ab"), want: "does not end where it says"},
		{name: "pax without a key", data: px("6 =ab\n"), want: "a record without a key"},
		{name: "pax without a sign", data: px("6 abc\n"), want: "a record without a key"},
		{name: "pax twice", data: archive(item{name: "x", typ: 'x', body: paxBody("path=b")}, item{name: "x", typ: 'x', body: paxBody("path=c")}, file("a", "")), want: "two extended headers for one entry"},
		{name: "pax at the end", data: archive(item{name: "x", typ: 'x', body: paxBody("path=b")}), want: "an extended header without an entry"},
		{name: "pax too large", data: archive(item{name: "x", typ: 'x', size: "77777777777"}), want: "is an extended header of 8589934591 bytes, more than the limit"},
		{name: "long name too large", data: archive(item{name: "x", typ: 'L', magic: gnuMagic, size: "77777777777"}), want: "is an extended header of"},
		{name: "global path", data: archive(item{name: "g", typ: 'g', body: paxBody("path=b")}, file("a", "")), want: `a global header says "path" for all entries`},
		{name: "global size", data: archive(item{name: "g", typ: 'g', body: paxBody("size=7")}, file("a", "")), want: `a global header says "size"`},
		{name: "global attribute", data: archive(item{name: "g", typ: 'g', body: paxBody("SCHILY.xattr.user.a=7")}, file("a", "")), want: "a global header says"},
		{name: "character set", data: archive(item{name: "a", typ: '0', pax: []string{"hdrcharset=KOI8-R"}}), want: `"a" has names in the character set "KOI8-R"`, plain: true},
		{name: "unknown type", data: archive(item{name: "a", typ: 'Q'}), want: `"a" has the unknown type "Q"`, plain: true},
		{name: "unknown type of a control character", data: archive(item{name: "a", typ: 7}), want: `has the unknown type "\a"`, plain: true},
		{name: "unknown type of a byte that is no ASCII", data: archive(item{name: "a", typ: 0xff}), want: `has the unknown type "\xff"`, plain: true},
		{name: "multi-volume", data: archive(item{name: "a", typ: 'M', magic: gnuMagic}), want: "is a part of a file of a multi-volume archive, which is not supported", plain: true},
		{name: "multi-volume in pax", data: archive(item{name: "a", typ: '0', pax: []string{"GNU.volume.offset=5"}}), want: "multi-volume", plain: true},
		{name: "incremental", data: archive(item{name: "a/", typ: 'D', magic: gnuMagic}), want: "incremental archive", plain: true},
		{name: "socket", data: archive(item{name: "a", typ: 's'}), want: "is a socket", plain: true},
		{name: "sparse of star", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.realsize=7"}}), want: "sparse files of star and Solaris", plain: true},
		{name: "overlay whiteout", data: archive(item{name: "a", typ: '3', major: "0000000", minor: "0000000"}), want: "is a whiteout of an overlay", plain: true},
		{name: "attribute name too long", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.user." + strings.Repeat("k", 260) + "=v"}}), want: "which Linux cannot have"},
		{name: "attribute too long", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.user.k=" + strings.Repeat("v", 70000)}}), want: "of 70000 bytes, more than the 65536"},
		{name: "attribute without a name", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.=v"}}), want: "which Linux cannot have"},
		{name: "attribute in bad base64", data: archive(item{name: "a", typ: '0', pax: []string{"LIBARCHIVE.xattr.user.k=***"}}), want: "whose value cannot be decoded"},
		{name: "attribute with a bad escape", data: archive(item{name: "a", typ: '0', pax: []string{"LIBARCHIVE.xattr.user.%zz=AA"}}), want: "whose name cannot be decoded"},
		{name: "two values of an attribute", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.user.k=1", "LIBARCHIVE.xattr.user.k=Mg"}}), want: `has two values of the attribute "user.k"`},
		{name: "attribute of an unknown kind", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.nothing.k=1"}}), want: `cannot set the attribute "nothing.k"`, plain: true},
		{name: "attribute of an unknown kind, of an odd name", data: archive(item{name: "\x1b[2J", typ: '2', link: "x", pax: []string{"SCHILY.xattr.nothing.\n=1"}}), want: `cannot write "\x1b[2J": cannot set the attribute "nothing.\n": lsetxattr: operation not supported`, plain: true},
		{name: "acl that is none", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.access=hello"}}), want: `"a" has an access control list with the entry "hello"`},
		{name: "acl without others", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.access=user::rw-,group::r--"}}), want: "no entry for the owner"},
		{name: "acl without a mask", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.access=user::rw-,user:5:r--,group::r--,other::r--"}}), want: "no mask"},
		{name: "acl twice", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.access=user::rw-,user::r--,group::r--,other::r--"}}), want: "two entries for one"},
		{name: "acl by name", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.access=user::rw-,user:ann:r--,group::r--,mask::r--,other::r--"}}), want: `"a" has an access control list that names "ann" without a number`, plain: true},
		{name: "default acl on a file", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.acl.default=user::rw-,group::r--,other::r--"}}), want: "access control list of another kind of object"},
		{name: "acl on a symlink", data: archive(item{name: "a", typ: '2', link: "b", pax: []string{"SCHILY.acl.access=user::rw-,group::r--,other::r--"}}), want: "access control list of another kind of object"},
	}
}

func sparseMaps() []hostile {
	old := func(size string, body string, nums ...int64) []byte {
		var b strings.Builder
		for _, n := range nums {
			b.WriteString(field(n))
		}
		s := b.String() + strings.Repeat("\x00", 96-b.Len()) + "\x00" + size
		return archive(item{name: "s", typ: 'S', magic: gnuMagic, sparse: s, body: body})
	}
	v10 := func(size, body string) []byte {
		return archive(item{name: "s", typ: '0', body: body, pax: []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=" + size}})
	}
	v01 := func(size, m, body string) []byte {
		return archive(item{name: "s", typ: '0', body: body, pax: []string{"GNU.sparse.size=" + size, "GNU.sparse.map=" + m}})
	}
	pad := func(s string) string { return s + strings.Repeat("\x00", 512-len(s)) }
	return []hostile{
		{name: "old overlap", data: old(field(4096), "abcdef", 0, 3, 2, 3), want: `"s" has a sparse map whose pieces overlap`},
		{name: "old order", data: old(field(4096), "abcdef", 1000, 3, 0, 3), want: "out of order"},
		{name: "old beyond", data: old(field(100), "abc", 99, 3), want: "reaches beyond its size of 100 bytes"},
		{name: "old without a size", data: old("zzzzzzzzzzz\x00", "abc", 0, 3), want: "without the file's size"},
		{name: "old of garbage", data: archive(item{name: "s", typ: 'S', magic: gnuMagic, sparse: strings.Repeat("z", 126)}), want: "has a sparse map without the file's size"},
		{name: "old and body differ", data: old(field(4096), "abcd", 0, 3), want: "has a sparse map of 3 bytes and 4 bytes of data"},
		{name: "old huge", data: old(field(1<<33-1), "", 0, 0), o: Options{Limits: Limits{Bytes: 1 << 30}}, want: "more than the limit of 1073741824"},
		{name: "old in ustar", data: archive(item{name: "s", typ: 'S'}), want: "is a sparse file in an archive that is not GNU tar's"},
		{name: "old, continued nowhere", data: archive(item{name: "s", typ: 'S', magic: gnuMagic, sparse: strings.Repeat("\x00", 96) + "\x01" + field(10)})[:512], want: "truncated"},
		{name: "0.1 odd", data: v01("10", "0,1,2", "a"), want: "a sparse map of 3 numbers"},
		{name: "0.1 negative", data: v01("10", "-1,1", "a"), want: `with "-1", which is no number`},
		{name: "0.1 of the largest numbers", data: v01("10", "9223372036854775807,9223372036854775807", "a"), want: "reaches beyond"},
		{name: "0.1 without a size", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.map=0,0"}}), want: "incomplete sparse map"},
		{name: "0.1 of a folder", data: archive(item{name: "s", typ: '5', pax: []string{"GNU.sparse.size=0", "GNU.sparse.map=0,0"}}), want: "has a sparse map and is no file"},
		{name: "0.0 unpaired", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.size=9", "GNU.sparse.offset=0"}}), want: "do not pair"},
		{name: "0.0 length first", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.numbytes=0"}}), want: "do not pair"},
		{name: "1.0 without a map", data: v10("10", ""), want: "longer than its body"},
		{name: "1.0 of garbage", data: v10("10", pad("hello\n")), want: "a sparse map that is damaged"},
		{name: "1.0 without an end", data: v10("10", strings.Repeat("1", 512)), want: "a sparse map that is damaged"},
		{name: "1.0 cut short", data: v10("10", pad("2\n0\n1\n")), want: "a sparse map that is"},
		{name: "1.0 of many pieces", data: v10("10", pad("99999999\n")), want: "a sparse map of 99999999 pieces"},
		{name: "1.0 negative", data: v10("10", pad("1\n-5\n1\n")+"a"), want: "a sparse map that is damaged"},
		{name: "1.0 and garbage", data: v10("10", pad("1\n0\n1\nxx")+"a"), want: "a sparse map that is damaged"},
		{name: "1.0 with two maps", data: archive(item{name: "s", typ: '0', body: pad("0\n"), pax: []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=5", "GNU.sparse.map=0,0"}}), want: "of two forms"},
		{name: "version 2", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.major=2", "GNU.sparse.minor=0"}}), want: "of the version", plain: true},
		{name: "unknown record", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.x=2"}}), want: "which is not known", plain: true},
		{name: "two sparse maps", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.map=0,0", "GNU.sparse.map=0,0"}}), want: "has two sparse maps"},
	}
}

func limits() []hostile {
	var many []item
	for i := range 20 {
		many = append(many, file(fmt.Sprint("f", i), "0123456789"))
	}
	return []hostile{
		{name: "too many entries", data: archive(many...), o: Options{Limits: Limits{Entries: 19}}, want: `"f19" is one entry more than the limit of 19`},
		{name: "too many folders between", data: archive(file("a/b/c/d/e", "")), o: Options{Limits: Limits{Entries: 4}}, want: "more than the limit of 4"},
		{name: "too many whiteouts", data: archive(file(".wh.a", ""), file(".wh.b", "")), o: Options{Layer: true, Limits: Limits{Entries: 1}}, want: "more than the limit of 1"},
		{name: "too many bytes in all", data: archive(many...), o: Options{Limits: Limits{Bytes: 100}}, want: `"f10" exceeds the limit of 100 bytes in all`},
		{name: "too many bytes in one", data: archive(file("a", strings.Repeat("x", 101))), o: Options{Limits: Limits{Bytes: 100}}, want: `"a" has 101 bytes, more than the limit`},
		{name: "too much of names", data: archive(many...), o: Options{Limits: Limits{Meta: 30}}, want: "exceeds the limit of 30 bytes for names and attributes"},
		{name: "too much of attributes", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.user.k=" + strings.Repeat("v", 5000)}}), o: Options{Limits: Limits{Meta: 4000}}, want: "for names and attributes"},
		{name: "too much of targets", data: archive(item{name: "a", typ: '2', pax: []string{"linkpath=" + strings.Repeat("v", 4000)}}), o: Options{Limits: Limits{Meta: 4000}}, want: "for names and attributes"},
		{name: "too large a header", data: archive(item{name: "a", typ: '0', pax: []string{"comment=" + strings.Repeat("v", 4000)}}), o: Options{Limits: Limits{Header: 4000}}, want: "more than the limit of 4000"},
		{name: "too deep for the limit", data: archive(file("a/b/c/d", "")), o: Options{Limits: Limits{Depth: 3}}, want: "lies more than 3 folders deep"},
		{name: "too many pieces", data: archive(item{name: "s", typ: '0', body: "ab", pax: []string{"GNU.sparse.size=9", "GNU.sparse.map=0,1,5,1"}}), o: Options{Limits: Limits{Extents: 1}}, want: "a sparse map of 4 numbers"},
		{name: "sparse files in all", data: archive(
			item{name: "s", typ: '0', pax: []string{"GNU.sparse.size=900", "GNU.sparse.map=900,0"}},
			item{name: "t", typ: '0', pax: []string{"GNU.sparse.size=900", "GNU.sparse.map=900,0"}}), o: Options{Limits: Limits{Bytes: 1000}}, want: `"t" exceeds the limit of 1000 bytes in all`},
	}
}

// No hostile archive is unpacked, each message names what is wrong without a byte
// that a terminal would act upon, and nothing is left in or beside dest.
func TestHostile(t *testing.T) {
	tried := 0
	for _, group := range []struct {
		name  string
		cases []hostile
	}{{"leaves", leaves()}, {"names", names()}, {"damage", damages()}, {"headers", headers()}, {"sparse", sparseMaps()}, {"limits", limits()}} {
		for _, c := range group.cases {
			tried++
			t.Run(group.name+"/"+c.name, func(t *testing.T) {
				b := newBox(t)
				before := b.outside()
				_, _, err := b.unpack(nil, read(c.data), c.o)
				b.mustFail(before, err, c.want, !c.plain)
			})
		}
	}
	t.Logf("%d hostile archives", tried)
}

// The negative control of the test above: the same names are made where nothing is
// wrong with them, and what lies beside dest is seen when it is touched.
func TestHostileControl(t *testing.T) {
	b := newBox(t)
	before := b.outside()
	_, _, err := b.unpack(nil, read(archive(dir("usr"), file("usr/ok", "x"), hardlink("usr/link", "usr/ok"), symlink("s", "../outside"))), Options{})
	b.mustHave(err, []string{"s", "usr/", "usr/link", "usr/ok"})
	if before != b.outside() {
		t.Error("an honest archive changed something beside dest")
	}
	if err := os.WriteFile(b.dir+"/s/file", []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if before == b.outside() {
		t.Error("a write through the symlink is not seen")
	}
}
