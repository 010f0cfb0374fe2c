#!/bin/bash
# ext4 and XFS on volumes, through nbdfuse and loop devices: stress-ng works on them and verifies what it reads, fstrim gives
# room back, the Primary dies under load, and the next one has sound file systems with everything that was synced.
. "$(dirname "$0")/lib.sh"
need_root
need nbdfuse fusermount3 losetup mkfs.ext4 e2fsck stress-ng fstrim sha256sum
[ -e /dev/fuse ] || skip "no /dev/fuse"
losetup -f > /dev/null 2>&1 || skip "no loop devices"
# Mounts of its own: a mount namespace that somebody else makes meanwhile would keep a copy of each, and what is
# unmounted here would stay mounted there.
[ -n "${OWN_MOUNTS:-}" ] || OWN_MOUNTS=1 exec unshare --mount --propagation private "$0" "$@"
scratch

# XFS is not made smaller than 300 MB. A kernel without it does not keep ext4 from being tried.
kinds=(ext4)
if command -v mkfs.xfs xfs_repair > /dev/null && { grep -qw xfs /proc/filesystems || modprobe -q xfs; }; then kinds+=(xfs); fi
volumes=()
for kind in "${kinds[@]}"; do volumes+=("$kind=320MiB"); done
cluster 512MiB "${volumes[@]}"

# mounted KIND NODE: mounts the volume of that name, in $fs
mounted() {
    fs=$T/fs.$1
    mkdir -p "$fs"
    attach "$2" "$1"
    mount -t "$1" "$loop" "$fs" || die "mount of $1 on $2"
    at_end "umount -l '$fs'"
}

# check KIND: whether the file system is sound, with nothing to mend
check() {
    case $1 in
        ext4) e2fsck -fn "$loop" ;;
        xfs) xfs_repair -n "$loop" ;;
    esac > "$T/out.log" 2>&1 || die "$1 is damaged: $(cat "$T/out.log")"
}

umount_quietly() { umount "$fs" 2> /dev/null; }

sums() { (cd "$fs" && find kept -type f -print0 | sort -z | xargs -0 sha256sum); }

# What each stressor does is checked by itself as far as it can.
stress() { # SECONDS
    mkdir -p "$fs/stress"
    exec setsid stress-ng --temp-path "$fs/stress" --timeout "$1" --verify --metrics-brief --hdd 1 --hdd-bytes 16M --hdd-opts wr-rnd,rd-rnd,fsync,iovec \
        --iomix 1 --iomix-bytes 16M --fallocate 1 --fallocate-bytes 16M --fpunch 1 --rename 1 --dentry 1 \
        --seek 1 --seek-size 8M --sync-file 1 --sync-file-bytes 8M --fiemap 1 --fiemap-bytes 8M --chmod 1 --link 1 --symlink 1 --xattr 1
}

from=pbx-a to=pbx-b
promote $from
for kind in "${kinds[@]}"; do
    attach $from "$kind"
    case $kind in
        ext4) mkfs.ext4 -q -F "$loop" ;;
        xfs) mkfs.xfs -q -f "$loop" ;;
    esac || die "mkfs.$kind"
    detach

    mounted "$kind" $from
    (stress 5s) > "$T/out.log" 2>&1 || die "stress-ng on $kind: $(grep -v metrc "$T/out.log" | tail -n 30)"
    rm -rf "$fs/stress"
    mkdir "$fs/kept"
    for n in $(seq 40); do head -c $((n * n * 997)) /dev/urandom > "$fs/kept/$n"; done
    truncate -s 20M "$fs/kept/1" "$fs/kept/2"
    cp -a "$fs/kept" "$fs/away" && rm -r "$fs/away"
    sync -f "$fs" || die "sync of $kind"
    fstrim -v "$fs" > "$T/out.log" 2>&1 || die "fstrim of $kind: $(cat "$T/out.log")"
    umount "$fs" || die "umount of $kind"
    check "$kind"
    mount -t "$kind" "$loop" "$fs" || die "mount of $kind"
    sums > "$T/sums.$kind"
    say "$kind: stress-ng found nothing, and the file system is sound"

    # The Primary dies while it is written to.
    stress 60s > "$T/stress.log" 2>&1 &
    stress=$!
    at_end "kill -KILL -- -$stress"
    works() { [ -n "$(find "$fs/stress" -type f 2> /dev/null | head -n 1)" ]; }
    wait_for 30 "stress-ng works" works
    sleep 1
    kill9 $from
    # All of it: what still uses the file system would keep it mounted.
    kill -KILL -- -$stress
    wait $stress 2> /dev/null
    wait_for 30 "the dead file system is unmounted" umount_quietly
    detach

    promote $to
    mounted "$kind" $to
    sums | cmp - "$T/sums.$kind" || die "$kind on $to has other files"
    rm -rf "$fs/stress"
    umount "$fs" || die "umount of $kind on $to"
    check "$kind"
    detach
    say "$kind: the same files on $to, and the file system is sound"
    start $from
    wait_for 90 "$from has caught up" caught_up $from $to
    last=$to to=$from from=$last
done
stop_cleanly "$from"
say "${kinds[*]}: stores are equal"
